mod support;
use orb8_agent::capture::{Planes, SocketRoot};
use orb8_testbed::link::{Veth, VethOptions};
use orb8_testbed::netns::Netns;
use std::os::unix::fs::MetadataExt;
use support::direct::{Direct, options};

#[test]
fn experiment() {
    let veth = Veth::addressed(VethOptions::default());
    let (near, far) = (&veth.near, &veth.far);
    let path = std::path::PathBuf::from("/sys/fs/cgroup/unified");
    let id = std::fs::metadata(&path).unwrap().ino();
    for planes in [
        Planes::Socket(SocketRoot { path: path.clone(), id, level: 0 }),
        Planes::Both(SocketRoot { path: path.clone(), id, level: 0 }),
    ] {
        let mut o = options("eth0");
        o.planes = planes.clone();
        let n = if planes.has_interfaces() { 1 } else { 0 };
        let mut d = Direct::with(&o, &near.netns, n);
        std::thread::sleep(std::time::Duration::from_millis(500));
        let far_v4 = far.v4;
        let far_v6 = far.v6;
        let near_v4 = near.v4;
        let near_v6 = near.v6;
        near.netns.enter(|| {
            for a in [std::net::IpAddr::V4(far_v4), far_v6.into()] {
                let _ = std::net::TcpStream::connect((a, 81));
                let s = std::net::UdpSocket::bind(if a.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })
                    .unwrap();
                s.send_to(b"x", (a, 82)).unwrap();
            }
        });
        println!("{}", near.netns.run(&format!("ping -c 2 -i 0.2 {far_v4}")));
        println!("{}", near.netns.run(&format!("ping -c 2 -i 0.2 {far_v6}")));
        println!("{}", far.netns.run(&format!("ping -c 2 -i 0.2 {near_v4}")));
        println!("{}", far.netns.run(&format!("ping -c 2 -i 0.2 {near_v6}")));
        far.netns.enter(|| {
            for a in [std::net::IpAddr::V4(near_v4), near_v6.into()] {
                let _ = std::net::TcpStream::connect((a, 83));
                let s = std::net::UdpSocket::bind(if a.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })
                    .unwrap();
                s.send_to(b"x", (a, 84)).unwrap();
            }
        });
        let obs = d.settled(1);
        println!("=== {planes:?}");
        let mut lines: Vec<_> = obs.dump();
        lines.sort();
        for l in lines {
            println!("{l}");
        }
        println!("{:?} {:?}", obs.unexplained(), obs.report.after);
    }
    let _ = Netns::new("x");
}
