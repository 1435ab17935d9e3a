#!/bin/sh
# The first process of a node, in mount, uts, ipc, pid, cgroup and network namespaces of its own. It
# makes a machine of them, on the real machine's files, and starts containerd, the kubelet and
# kube-proxy, again whenever one ends.
#
# Arguments: the lab's folder, the node's name, its addresses (IPv4,IPv6), the API server's URL, the
# folder of Kubernetes' programs, a folder to find containerd in before others (may be empty), the
# pods' ranges (IPv4,IPv6).
set -eu
lab=$1 name=$2 addresses=$3 server=$4 bin=$5 containerd=$6 pods=$7
node=$lab/$name
[ -z "$containerd" ] || export PATH="$containerd:$PATH"

hostname "$name"
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# A cgroup with children that have controllers may not have processes of its own.
mkdir -p /sys/fs/cgroup/init
echo 1 >/sys/fs/cgroup/init/cgroup.procs
# What a crash has left.
[ ! -d /sys/fs/cgroup/kubepods ] || find /sys/fs/cgroup/kubepods -depth -type d -exec rmdir {} +
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null || :
mount -t tmpfs tmpfs /run
# What the node writes to /etc and /var is its own.
for folder in etc var; do
    mkdir -p /run/own/$folder/upper /run/own/$folder/work
    layers=lowerdir=/$folder,upperdir=/run/own/$folder/upper,workdir=/run/own/$folder/work
    mount -t overlay overlay -o "$layers" /$folder
done
# Not on the layers: containerd stacks its own, and a crash must not lose images.
mkdir -p /var/lib/containerd /var/lib/kubelet /etc/cni/net.d /etc/containerd
mount --bind "$node/containerd" /var/lib/containerd
mount --bind "$node/kubelet" /var/lib/kubelet
# The kubelet sets three settings of the whole machine: it finds them set, in files of the node's.
for setting in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1; do
    file=/run/own/${setting##*/}
    echo "${setting#*=}" >"$file"
    mount --bind "$file" "/proc/sys/${setting%=*}"
done
# As systemd does it, for volumes with Bidirectional propagation.
mount --make-rshared /
printf '127.0.0.1 localhost\n::1 localhost\n' >/etc/hosts
: >/etc/resolv.conf
cp "$node/config/containerd.toml" /etc/containerd/config.toml
cp "$node/config/cni.conflist" /etc/cni/net.d/10-lab.conflist

keep() {
    log=$node/log/$1.log
    shift
    while :; do
        "$@" >>"$log" 2>&1 || :
        echo "ended: $1" >>"$log"
        sleep 0.5
    done &
}

keep containerd containerd
tries=0
until ctr version >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 600 ] || exit 1
    sleep 0.05
done
while read -r image; do
    nice ctr -n k8s.io images import "$image" >>"$node/log/import.log" 2>&1 ||
        echo "failed: $image" >>"$node/log/import.log"
done <"$node/config/images"

pki=$lab/pki
until curl -sf -m 2 -o /dev/null --cacert "$pki/ca.crt" "$server/readyz"; do
    sleep 0.2
done
keep kubelet "$bin/kubelet" --config "$node/config/kubelet.yaml" \
    --kubeconfig "$lab/kubelet-$name.kubeconfig" --hostname-override "$name" \
    --node-ip "$addresses" --root-dir /var/lib/kubelet
# The sizes of the table of connections are the machine's.
keep kube-proxy "$bin/kube-proxy" --kubeconfig "$lab/kube-proxy.kubeconfig" \
    --hostname-override "$name" --proxy-mode nftables --cluster-cidr "$pods" \
    --conntrack-max-per-core 0 --conntrack-min 0 --conntrack-tcp-timeout-established 0s \
    --conntrack-tcp-timeout-close-wait 0s --oom-score-adj 0 --healthz-bind-address 127.0.0.1:10256
# Collects orphans, too.
while :; do
    wait || :
    sleep 0.2
done
