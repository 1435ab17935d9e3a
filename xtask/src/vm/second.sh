# Process 1 of the guest, on top of the machine's files.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /lib/modules
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount --bind "$modules" /lib/modules
# Not /tmp, which may hold the folder, and is a layer: a layer can be nobody's upper one.
mkdir /run/tmp
export TMPDIR=/run/tmp
ip link set lo up
cd "$folder" || { echo "no folder $folder"; poweroff -f; }
echo "$begins$(uname -r)"
(COMMAND) </dev/null 2>&1
echo "$ended$?"
poweroff -f
