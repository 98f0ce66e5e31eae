//! scratch
#[allow(dead_code)]
mod support;

#[test]
fn scratch() {
    use lb_userspace::io::datapath::Datapath;
    let pins = support::Pins::new();
    let mut kernel = support::kernel(&pins, &support::wanted());
    println!("{:?} {:?}", kernel.verified_instructions(), kernel.now());
    let mut f = vec![2u8, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 8, 0];
    f.extend([0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 7, 203, 0, 113, 10]);
    f.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    f.resize(60, 0);
    let r = kernel.run_frame(&f, 1).unwrap();
    println!("{r:02x?}");
    for _ in 0..5 {
        let r = kernel.run_frame(&f, 10_000_000).unwrap();
        println!("hit {:?}", r.duration);
    }
    let mut g = f.clone();
    g[33] = 77;
    for _ in 0..3 {
        let r = kernel.run_frame(&g, 10_000_000).unwrap();
        println!("not vip {:?}", r.duration);
    }
    let g = [0u8; 60];
    for _ in 0..3 {
        let r = kernel.run_frame(&g, 10_000_000).unwrap();
        println!("not ip {:?}", r.duration);
    }
    println!("{:?}", kernel.verdicts());
}
