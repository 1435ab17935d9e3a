# Becomes a container's program: inside the pod's network namespace and cgroup, with a root of its
# own (the machine's files with a writable layer on top), a host name, and its volumes.
#
# Arguments: cgroup.procs of the container, its folder, host name, working directory, then the
# environment and the command as env(1) takes them.
set -eu
procs=$1 base=$2 hostname=$3 dir=$4
shift 4
# First, so that nothing of ours can outlive the lab.
echo 0 >"$procs"
echo "$hostname" >/proc/sys/kernel/hostname

root=$base/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" "$root"
mount --rbind /dev "$root/dev"
# Shared memory of a program that is killed stays as a file: here it goes with the container.
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount --bind /proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
tab=$(printf '\t')
while IFS=$tab read -r source target mode; do
    if [ -d "$source" ]; then
        mkdir -p "$root$target"
    else
        mkdir -p "$root${target%/*}"
        [ -e "$root$target" ] || : >"$root$target"
    fi
    mount --bind "$source" "$root$target"
    [ "$mode" = rw ] || mount -o remount,bind,ro "$root$target"
done <"$base/mounts"

cd "$root"
mkdir -p .outside
pivot_root . .outside
cd /
umount -l /.outside
rmdir /.outside
cd "$dir"
exec env -i "$@"
