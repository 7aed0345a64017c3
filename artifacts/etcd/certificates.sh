#!/bin/sh
# Makes the certificates of the example core etcd and prints them as Kubernetes objects:
#   sh artifacts/etcd/certificates.sh | kubectl apply -f -
# The namespaces etcd and kube-apiserver-storage must exist. Nothing is kept: the CA's key is thrown away,
# so running it again replaces all of them; then restart etcd and the proxies.
set -eu

days=${DAYS:-365}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
umask 077

cat >openssl.cnf <<EOF
[req]
prompt = no
distinguished_name = name
[name]
O = etcd
[ca_name]
CN = etcd-ca
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = DNS:etcd-svc-1.etcd.svc, DNS:etcd-svc-1.etcd.svc.cluster.local, DNS:etcd-svc-1.etcd, DNS:etcd-svc-1, DNS:localhost, IP:127.0.0.1
[client]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
EOF
sed 's/= name$/= ca_name/' openssl.cnf >ca.cnf

quietly() {
	"$@" 2>log || { cat log >&2; exit 1; }
}

key() {
	quietly openssl ecparam -name prime256v1 -genkey -noout -out "$1.ec.key"
	quietly openssl pkcs8 -topk8 -nocrypt -in "$1.ec.key" -out "$1.key"
}

# Both leaves have an organization and no Common Name: "etcd grpc-proxy" refuses a client certificate with one,
# since etcd would take it for a user's name (https://github.com/etcd-io/etcd/issues/11970).
leaf() {
	key "$1"
	quietly openssl req -new -config openssl.cnf -key "$1.key" -out "$1.csr"
	quietly openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAserial serial -CAcreateserial \
		-days "$days" -sha256 -extfile openssl.cnf -extensions "$1" -out "$1.crt"
}

key ca
quietly openssl req -x509 -new -config ca.cnf -extensions ca -key ca.key -days "$days" -sha256 -out ca.crt
leaf server
leaf client

encoded() {
	openssl base64 -A -in "$1"
}

configmap() {
	cat <<EOF
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: $1
  namespace: $2
data:
  ca.crt: |
$(sed 's/^/    /' ca.crt)
EOF
}

secret() {
	cat <<EOF
---
apiVersion: v1
kind: Secret
metadata:
  name: $1
  namespace: $2
type: kubernetes.io/tls
data:
  tls.crt: $(encoded "$3.crt")
  tls.key: $(encoded "$3.key")
EOF
}

configmap etcd-ca etcd
secret etcd-server-cert etcd server
configmap etcd-coreserving-ca kube-apiserver-storage
secret etcd-coreserving-cert kube-apiserver-storage client
