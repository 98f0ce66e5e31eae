//! The demo: turns a lab into a story on the terminal, from the first customer's page to the counters at the end.

mod customers;
mod failures;
mod screen;

use std::time::Instant;

use anyhow::{Context, Result, bail};
use lb_tests::{Agent, Lab, SHOP_NAME, VIP};
use nix::sys::signal::{SigSet, Signal};

use screen::Screen;

const TOPOLOGY: &str = "\
  customer          cdn            edge  ◄── Sluice: every packet to 203.0.113.10
 10.0.1.100      10.0.1.50       10.0.1.2    gets the MAC of a web server, in XDP
     │               │               │
 ════╧═══════╤═══════╧═══════╤═══════╧════  public segment 10.0.1.0/24
             │               │
           web1            web2      ◄── nginx, HTTP and HTTPS; the VIP on loopback:
        10.0.1.11        10.0.1.12       answers go straight to the customer
             │               │
 ════════╤═══╧═══════════╤═══╧════════════  private segment 10.0.2.0/24
         │               │
       app1            app2          ◄── the app tier; only web servers reach it
    10.0.2.101      10.0.2.102";

/// Tells the story; without `once` it then waits for Ctrl-C. An error if anything in it did not work.
pub(crate) fn run(once: bool) -> Result<()> {
    let start = Instant::now();
    let mut screen = Screen::new(!once);
    println!("\nSluice: customers are served through one address by many servers\n");
    screen.show(TOPOLOGY);
    screen.chapter("The lab starts");
    let lab = Lab::builder().start().context("starting the lab")?;
    screen.say(&format!(
        "{} hosts in network namespaces, with {} real nginx servers, in {:.1} s",
        3 + lab.webs().len() + lab.apps().len(),
        1 + lab.webs().len() + lab.apps().len(),
        start.elapsed().as_secs_f64()
    ));
    let agent = lab.start_healthy_agent(&lab.config()).context("starting the agent on edge")?;
    agent_started(&mut screen, &agent)?;

    customers::ask(&mut screen, &lab)?;
    customers::distribution(&mut screen, &lab)?;
    failures::web_server(&mut screen, &lab, &agent)?;
    customers::private_tier(&mut screen, &lab)?;
    let agent = failures::agent(&mut screen, &lab, agent)?;
    customers::explain(&mut screen, &lab)?;
    counters(&mut screen, &agent)?;
    let (checks, failed) = screen.result();
    println!("\n{checks} checks, {failed} failed, in {:.0} s", start.elapsed().as_secs_f64());
    if !once {
        wait_for_ctrl_c(&lab)?;
    }
    if failed > 0 {
        bail!("{failed} of {checks} checks failed");
    }
    Ok(())
}

fn agent_started(screen: &mut Screen, agent: &Agent<'_>) -> Result<()> {
    let status = agent.status()?;
    let interface = &status["agent"]["interfaces"][0];
    let mode = interface["xdp_mode"].as_str().unwrap_or("unknown");
    screen.check(
        mode == "driver",
        &format!("sluice agent runs on edge, native XDP on {}", interface["name"].as_str().unwrap_or("?")),
        &format!("expected XDP mode \"driver\", but it is \"{mode}\""),
    );
    Ok(())
}

fn counters(screen: &mut Screen, agent: &Agent<'_>) -> Result<()> {
    screen.chapter("What Sluice counted");
    screen.say("$ sluice status");
    let table = agent.sluice(&["status"])?;
    screen.show(&String::from_utf8_lossy(&table.stdout));
    let status = agent.status()?;
    let forwarded = status["verdicts"]["forward"].as_u64().unwrap_or(0);
    let claim = format!("{forwarded} packets forwarded");
    screen.check(table.status.success() && forwarded > 0, &claim, "expected a table and packets in it");
    Ok(())
}

fn wait_for_ctrl_c(lab: &Lab) -> Result<()> {
    let sluice = lb_tests::sluice_binary()?;
    println!("\nThe lab stays up. From another terminal, as root:\n");
    println!("  # be a customer");
    println!(
        "  nsenter --net={} curl --resolve {SHOP_NAME}:80:{VIP} http://{SHOP_NAME}/",
        lab.customer().netns().path()
    );
    println!("  # ask the agent");
    println!("  {} --socket {} status", sluice.display(), lab.socket().display());
    println!("  # edit its configuration, then apply it");
    println!("  $EDITOR {}", lab.config_file().display());
    println!("\nCtrl-C tears it down.");
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().context("blocking signals")?;
    signals.wait().context("waiting for a signal")?;
    println!("\nTearing down.");
    Ok(())
}
