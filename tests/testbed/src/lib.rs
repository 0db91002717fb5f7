//! What the kernel tests, `make demo` and `make soak` stand on: network namespaces, links, traffic whose exact
//! packets and bytes are known before it is sent, foreign BPF programs, and runners for the
//! agent and the CLI.
//!
//! | module | content |
//! |---|---|
//! | [`need`](mod@need) | what a test needs from the machine, and how it skips |
//! | [`netns`] | namespaces that end with their handle |
//! | [`link`] | veth pairs, bridges, tun devices |
//! | [`offload`] | segmentation and checksum offload switches |
//! | [`flow`] | what was sent: packets and bytes per flow |
//! | [`packet`] | raw frames, written header by header |
//! | [`flood`] | as many small frames as a core can send |
//! | [`raw`] | packet sockets: send a frame as it is |
//! | [`tun`] | devices without a link header |
//! | [`ring`] | a packet ring that sends frames whose headers are not linear |
//! | [`traffic`] | real sockets with exact byte counts |
//! | [`python`] | the Python environment of `make setup` |
//! | [`scapy`] | frames made by scapy, an independent opinion |
//! | [`counters`] | what the kernel itself says it carried |
//! | [`bpf`] | foreign tcx programs and questions about attached ones |
//! | [`fdinfo`] | what the kernel says of a process's maps and programs |
//! | [`demo`] | the story that `make demo` tells |
//! | [`soak`] | loads that no node should have, and what becomes of the agent |
//! | [`fork`] | a copy of this process that holds its descriptors |
//! | [`scratch`] | folders that end with their handle |
//! | [`api`] | a Kubernetes API server |
//! | [`pods`] | many pods of another node, known by name only |
//! | [`proc`] | a `/proc` with the cgroup mounts of another kind of node |
//! | [`cgroup`] | a subtree of cgroup2 that ends with its handle |
//! | [`cluster`] | nodes, pods and Services made of namespaces, cgroups and iptables |
//! | [`agent`] | `orb8-agent` and `orb8` as processes |
//! | [`signals`] | the end of a program by Ctrl-C |
//! | [`wait`] | conditions with a deadline |
//!
//! Rules: nothing here outlives the process, not even after SIGKILL: namespaces have no names and
//! live as long as a file descriptor or a process in them. Setup that fails panics, because a
//! test without its scene has nothing to say. Nothing here imports product code;
//! only [`soak`] and [`pods`] know the contract (`orb8-proto`).

#![allow(clippy::disallowed_methods, reason = "tests ask the machine they run on")]

pub mod agent;
pub mod api;
pub mod bpf;
pub mod cgroup;
pub mod cluster;
pub mod counters;
pub mod demo;
pub mod fdinfo;
pub mod flood;
pub mod flow;
pub mod fork;
pub mod link;
pub mod need;
pub mod netns;
pub mod offload;
pub mod packet;
pub mod pods;
pub mod proc;
pub mod python;
pub mod raw;
pub mod ring;
pub mod scapy;
pub mod scratch;
pub mod signals;
pub mod soak;
pub mod traffic;
pub mod tun;
pub mod wait;
