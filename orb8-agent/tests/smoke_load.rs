#[test]
fn loads() {
    let o = orb8_agent::ebpf::load::LoadOptions { max_flows: 100_000, ring_bytes: 1<<20, packet_ring_bytes: 256*1024, fault_bytes: 0 };
    let t = std::time::Instant::now();
    match orb8_agent::ebpf::load::load(&o) { Ok(l) => println!("ok {} bytes {:?}", l.map_bytes, t.elapsed()), Err(e) => panic!("{e}") }
}
