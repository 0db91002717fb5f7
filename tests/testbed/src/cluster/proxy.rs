//! What kube-proxy and the CNI's masquerading write into a node's iptables: every rule anew after
//! each change, through `iptables-restore`.

use std::io::Write as _;
use std::net::IpAddr;
use std::process::Stdio;

use super::node::Node;
use super::plan::{self, Masquerade};
use crate::api::object::{Endpoint, ServicePort};

/// A Service as the proxy needs it.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its ClusterIPs.
    pub ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Who answers.
    pub endpoints: Vec<Endpoint>,
}

/// Writes the rules of both families into a node.
pub(super) fn apply(node: &Node, masquerade: Masquerade, services: &[Service]) {
    for (program, ipv6) in [("iptables-restore", false), ("ip6tables-restore", true)] {
        let rules = Rules { node, masquerade, ipv6 }.text(services);
        let mut command = node.netns.command(program);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
        let mut stdin = child.stdin.take().expect("stdin is piped");
        stdin.write_all(rules.as_bytes()).unwrap_or_else(|error| panic!("{program}: {error}"));
        drop(stdin);
        let output = child.wait_with_output().expect("a started child can be waited for");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} in {}: {stderr}\n{rules}", node.name);
    }
}

struct Rules<'a> {
    node: &'a Node,
    masquerade: Masquerade,
    ipv6: bool,
}

/// The chain names of one port of a Service.
struct Chains {
    service: String,
    external: String,
}

impl Rules<'_> {
    fn text(&self, services: &[Service]) -> String {
        let mut chains = String::new();
        let mut rules = String::new();
        let mut reject = String::new();
        for (number, service) in services.iter().enumerate() {
            for (at, port) in service.ports.iter().enumerate() {
                let id = format!("{number:03}{at:02}");
                self.port(&id, service, port, &mut chains, &mut rules, &mut reject);
            }
        }
        format!(
            "*filter\n:KUBE-SERVICES - [0:0]\n:KUBE-FORWARD - [0:0]\n\
             -A INPUT -m conntrack --ctstate NEW -j KUBE-SERVICES\n\
             -A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES\n\
             -A FORWARD -j KUBE-FORWARD\n\
             -A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES\n\
             -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n{reject}COMMIT\n\
             *nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
             :KUBE-POSTROUTING - [0:0]\n:CNI-MASQ - [0:0]\n{chains}\
             -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
             -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
             -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" \
             -j KUBE-POSTROUTING\n\
             -A POSTROUTING -j CNI-MASQ\n\
             -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
             -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
             -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
             -A KUBE-POSTROUTING -j MASQUERADE\n\
             {}{rules}\
             -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n",
            self.cni()
        )
    }

    fn cni(&self) -> String {
        let family = usize::from(self.ipv6);
        let own = &plan::pod_cidrs(self.node.number)[family];
        let inside = match self.masquerade {
            Masquerade::Off => return String::new(),
            Masquerade::Outside => plan::POD_RANGES[family].to_owned(),
            Masquerade::Everything => own.clone(),
        };
        format!("-A CNI-MASQ -s {own} ! -d {inside} -j MASQUERADE\n")
    }

    fn port(
        &self,
        id: &str,
        service: &Service,
        port: &ServicePort,
        chains: &mut String,
        rules: &mut String,
        reject: &mut String,
    ) {
        let Some(ip) = service.ips.iter().find(|ip| ip.is_ipv6() == self.ipv6) else { return };
        let protocol = port.protocol.to_lowercase();
        let comment = format!("-m comment --comment \"{}/{}\"", service.namespace, service.name);
        let at = format!("-d {ip} -p {protocol} -m {protocol} --dport {} {comment}", port.port);
        let node_port = (port.node_port != 0)
            .then(|| format!("-p {protocol} -m {protocol} --dport {} {comment}", port.node_port));
        let ready: Vec<&Endpoint> = service
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.ready && endpoint.address.is_ipv6() == self.ipv6)
            .collect();
        if ready.is_empty() {
            line(reject, &format!("-A KUBE-SERVICES {at} -j REJECT"));
            if let Some(at) = node_port {
                let local = "-m addrtype --dst-type LOCAL";
                line(reject, &format!("-A KUBE-SERVICES {local} {at} -j REJECT"));
            }
            return;
        }
        let names =
            Chains { service: format!("KUBE-SVC-{id}"), external: format!("KUBE-EXT-{id}") };
        line(chains, &format!(":{} - [0:0]", names.service));
        line(rules, &format!("-A KUBE-SERVICES {at} -j {}", names.service));
        if let Some(at) = node_port {
            line(chains, &format!(":{} - [0:0]", names.external));
            line(rules, &format!("-A KUBE-NODEPORTS {at} -j {}", names.external));
            line(rules, &format!("-A {} -j KUBE-MARK-MASQ", names.external));
            line(rules, &format!("-A {} -j {}", names.external, names.service));
        }
        let pods = plan::POD_RANGES[usize::from(self.ipv6)];
        line(rules, &format!("-A {} ! -s {pods} {at} -j KUBE-MARK-MASQ", names.service));
        for (number, endpoint) in ready.iter().enumerate() {
            let chain = format!("KUBE-SEP-{id}{number:02}");
            line(chains, &format!(":{chain} - [0:0]"));
            let left = ready.len() - number;
            let chance = if left == 1 {
                String::new()
            } else {
                // The kernel counts chances in steps of 2^-31; ten digits tell them all apart.
                let part = 10_000_000_000_u64 / u64::try_from(left).unwrap_or(1);
                format!("-m statistic --mode random --probability 0.{part:010} ")
            };
            line(rules, &format!("-A {} {chance}-j {chain}", names.service));
            let address = endpoint.address;
            line(rules, &format!("-A {chain} -s {address} -j KUBE-MARK-MASQ"));
            let to = std::net::SocketAddr::new(address, port.target);
            line(rules, &format!("-A {chain} -p {protocol} -j DNAT --to-destination {to}"));
        }
    }
}

fn line(to: &mut String, text: &str) {
    to.push_str(text);
    to.push('\n');
}
