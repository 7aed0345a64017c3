# The first process of the node's namespaces: prepares them, then stays as their pause process.
# Usage: holder.sh WORKDIR NODE_ADDRESS DNS_ADDRESS PAUSE_BINARY
set -eu
dir=$1 address=$2 dns=$3 pause=$4

# Sockets, pod namespaces and state of the runtime live and die with the mount namespace.
resolv=$(readlink -f /etc/resolv.conf)
mount -t tmpfs tmpfs /run
mkdir -p "$(dirname "$resolv")"
[ -e "$resolv" ] || : >"$resolv"
printf 'nameserver %s\nsearch svc.cluster.local cluster.local\noptions ndots:5\n' "$dns" >"$dir/resolv.conf"
mount --bind "$dir/resolv.conf" "$resolv"

# The kubelet and the CNI plugins have fixed paths here; what they write stays in the namespace.
mkdir -p "$dir/overlay"
mount -t tmpfs tmpfs "$dir/overlay"
for path in /var/lib /var/log; do
	upper=$dir/overlay$path
	mkdir -p "$upper" "$upper.work"
	mount -t overlay overlay -o "lowerdir=$path,upperdir=$upper,workdir=$upper.work" "$path"
done

# What is the root of each cgroup hierarchy in here is a cgroup of this cluster outside, where it can be told from others.
name=$(basename "$dir")
confine() {
	mkdir "$1/$name"
	# Version 1: a new cgroup has no CPUs until it is given some.
	for file in cpuset.cpus cpuset.mems; do
		[ ! -e "$1/notify_on_release" ] || [ ! -e "$1/$file" ] || cat "$1/$file" >"$1/$name/$file"
	done
	mount --bind "$1/$name" "$1"
}
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
	# Version 2: a cgroup has the controllers that its parent hands down.
	for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
		echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control || echo "no controller $controller for the node" >&2
	done
	confine /sys/fs/cgroup
else
	for hierarchy in /sys/fs/cgroup/*/; do
		[ ! -e "$hierarchy/cgroup.procs" ] || confine "${hierarchy%/}"
	done
fi

# Endpoints of a Service must not be loopback addresses, so a device of its own is the node.
# The kubelet looks for the default route.
ip link set lo up
ip link add node type bridge
ip address add "$address/24" dev node
ip link set node up
ip route add default dev node
echo 1 >/proc/sys/net/ipv4/ip_forward

: >"$dir/holder.ready"
exec "$pause"
