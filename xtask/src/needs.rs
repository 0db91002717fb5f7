//! What this process may do on this kernel, as far as the kernel tests and the demo need it.
//!
//! Only looks and says; the tests themselves decide to skip.

/// Capabilities by their bit in `/proc/self/status`, and what needs them.
const CAPABILITIES: [(u32, &str, &str); 4] = [
    (12, "CAP_NET_ADMIN", "makes links and attaches programs to them"),
    (21, "CAP_SYS_ADMIN", "makes network namespaces"),
    (38, "CAP_PERFMON", "loads programs that read packets"),
    (39, "CAP_BPF", "loads programs and makes maps"),
];

/// The running kernel's type information, which the loader reads offsets from.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// What is missing, each with what it is for and the next step.
pub(crate) fn missing() -> Vec<String> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    missing_of(&status, std::path::Path::new(BTF).exists())
}

fn missing_of(status: &str, has_btf: bool) -> Vec<String> {
    let effective = effective_capabilities(status);
    let mut missing: Vec<String> = CAPABILITIES
        .iter()
        .filter(|(bit, ..)| effective & (1 << bit) == 0)
        .map(|(_, name, why)| {
            format!(
                "{name} ({why}): run as root, on the host or in a container with this capability"
            )
        })
        .collect();
    if !has_btf {
        missing.push(format!(
            "{BTF} (the loader reads the kernel's layouts from it): \
             use a kernel built with CONFIG_DEBUG_INFO_BTF, as the distributions' are"
        ));
    }
    missing
}

/// The effective set, empty where it cannot be read.
fn effective_capabilities(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hexadecimal| u64::from_str_radix(hexadecimal.trim(), 16).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_rights_and_btf_miss_nothing() {
        assert!(missing_of("Name:\tx\nCapEff:\t000001ffffffffff\n", true).is_empty());
    }

    #[test]
    fn each_missing_thing_is_named() {
        let missing = missing_of("CapEff:\t0000000000001000\n", false).join("\n");
        for name in ["CAP_SYS_ADMIN", "CAP_PERFMON", "CAP_BPF", BTF] {
            assert!(missing.contains(name), "{name}: {missing}");
        }
        assert!(!missing.contains("CAP_NET_ADMIN"), "{missing}");
        assert_eq!(missing_of("", true).len(), CAPABILITIES.len());
    }
}
