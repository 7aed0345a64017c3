# Makes the node: namespaces and cgroups of its own, held by one process at whose end the kernel ends all the rest.
# Usage: sh holder.sh WORKDIR NODE_ADDRESS DNS_ADDRESS PAUSE_BINARY
set -eu
dir=$1 address=$2 dns=$3 pause=$4
name=$(basename "$dir")

# The mount points of cgroups: one in version 2, one for each hierarchy in version 1.
cgroups() {
	if [ -e /sys/fs/cgroup/cgroup.procs ]; then
		echo /sys/fs/cgroup
	else
		dirname /sys/fs/cgroup/*/cgroup.procs
	fi
}

# First time, outside: into a cgroup of the node's own, the root of its cgroup namespace.
if [ "${5-}" != inside ]; then
	for cgroup in $(cgroups); do
		mkdir "$cgroup/$name"
		if [ -e "$cgroup/cpuset.cpus" ] && [ -e "$cgroup/cgroup.clone_children" ]; then
			# Version 1: a new cgroup has no CPUs until it is given some.
			cat "$cgroup/cpuset.cpus" >"$cgroup/$name/cpuset.cpus"
			cat "$cgroup/cpuset.mems" >"$cgroup/$name/cpuset.mems"
			echo 1 >"$cgroup/$name/cgroup.clone_children"
		fi
		echo 0 >"$cgroup/$name/cgroup.procs"
	done
	exec unshare --cgroup --net --mount --propagation=private --ipc --pid --fork --kill-child --mount-proc -- \
		sh "$0" "$@" inside
fi

for cgroup in $(cgroups); do
	mount --bind "$cgroup/$name" "$cgroup"
	mkdir "$cgroup/init"
	echo 0 >"$cgroup/init/cgroup.procs"
done

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
