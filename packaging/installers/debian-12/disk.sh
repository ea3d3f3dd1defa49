#!/bin/sh
# The disk of {{ node.name }} is a volume, to which the installer logs in before it looks at disks.
set -e

node() {
    iscsiadm -m node -T '{{ disk.target }}' -p '{{ disk.address }}:{{ disk.port }}' "$@"
}

depmod -a
mkdir -p /etc/iscsi
echo 'InitiatorName={{ disk.initiator }}' > /etc/iscsi/initiatorname.iscsi
chmod 600 /etc/iscsi/initiatorname.iscsi
iscsi-start
node -o new
{% if disk.user %}
node -o update -n node.session.auth.authmethod -v CHAP
node -o update -n node.session.auth.username -v '{{ disk.user }}'
node -o update -n node.session.auth.password -v '{{ disk.password }}'
{% endif %}
node --login

path='/dev/disk/by-path/ip-{{ disk.address }}:{{ disk.port }}-iscsi-{{ disk.target }}-lun-{{ disk.lun }}'
for second in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    test -e "$path" && break
    sleep 1
done
# Whatever other disks there are, they are left alone.
disk=$(readlink -f "$path")
debconf-set partman-auto/disk "$disk"
debconf-set grub-installer/bootdev "$disk"
wget -q -O /dev/null '{{ say }}?text=its+disk+is+there'
