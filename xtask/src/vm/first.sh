#!/bin/busybox sh
# The guest's first program. Whatever fails ends the guest: the kernel panics without it.
set -e
b=/bin/busybox
for module in /modules/*; do
    $b insmod "$module"
done
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro files /files
$b mount -t tmpfs layer /layer
$b mkdir /layer/upper /layer/work
$b mount -t overlay -o lowerdir=/files,upperdir=/layer/upper,workdir=/layer/work root /root
$b cp /second /root/.malha-vm
exec $b switch_root /root /bin/sh /.malha-vm
