#!/bin/sh
# The guest's first and only own program: mounts what a host has, lets the agent say how it stands
# on this kernel, runs the test suites and turns the machine off. The host reads the second serial
# port; lines that begin with @@ are for it, the rest is what the tests print.
export PATH=/usr/sbin:/usr/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mkdir -p /dev/pts /dev/shm /tmp
ln -s /proc/self/fd /dev/fd
exec >/dev/ttyS1 2>&1 </dev/null
stty -F /dev/ttyS1 -opost
hostname guest
ip link set lo up
modprobe -a tun veth dummy nf_conntrack
up() { read -r seconds _ </proc/uptime; echo "$seconds"; }
echo "@@boot $(up) $(uname -r)"

# The agent with its own settings, on an interface that has an address.
ip link add uplink type dummy
ip addr add 192.0.2.1/24 dev uplink
ip link set uplink up
/vm/orb8-agent >/tmp/agent.log 2>&1 &
agent=$!
waited=0
until grep -q -e interface_attached -e 'Nothing can be seen' /tmp/agent.log; do
    waited=$((waited + 1))
    if [ "$waited" -gt "$(cat /vm/agent-limit)" ] || ! kill -0 "$agent"; then
        tail -n 5 /tmp/agent.log
        break
    fi
    sleep 1
done
echo "@@status $(up)"
/vm/orb8 status --output json
echo "@@status-end $? $(up)"
kill -INT "$agent"
wait "$agent"
ip link del uplink

while read -r name limit program; do # the program with the names of the tests to run
    echo "@@suite $name $(up)"
    # shellcheck disable=SC2086 # words are arguments
    cd / && timeout "$limit" $program --test-threads=2 </dev/null
    echo "@@suite-end $name $? $(up)"
done </vm/suites
echo "@@end $(up)"
sync
poweroff -f
