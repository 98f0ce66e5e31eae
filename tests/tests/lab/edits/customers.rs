//! What customers do meanwhile: requests on connections of their own, and megabytes up and down, every byte compared, on
//! connections old and new.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use lb_tests::{HttpConnection, Lab, Load, Netns};

const MEGABYTE: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause between transfers: agents need the cores, too.
const PAUSE: Duration = Duration::from_millis(20);

/// Customers at work until they are asked how it was.
pub struct Customers {
    load: Load,
    stopping: Arc<AtomicBool>,
    transfers: JoinHandle<u32>,
}

impl Customers {
    /// Lets customers go to work. None of their long connections is with a server of `others`.
    pub fn start(lab: &Lab, others: &[&str]) -> Self {
        let stopping = Arc::new(AtomicBool::new(false));
        let work = Transfers {
            stopping: Arc::clone(&stopping),
            netns: lab.customer().netns().clone(),
            to: lab.vip(80),
            file: lab.files().join("transfers"),
            others: others.iter().map(|name| (*name).to_owned()).collect(),
        };
        let transfers = std::thread::spawn(move || work.run());
        Self { load: Load::start(lab.customer(), lab.vip(80), "/", 1), stopping, transfers }
    }

    /// Ends the work: every request was answered and every byte arrived.
    pub fn were_served(self) {
        let report = self.load.stop().expect("report");
        assert_eq!(report.failed, 0, "{report:?}");
        assert!(report.answered > 500, "{report:?}");
        self.stopping.store(true, Ordering::Relaxed);
        let transfers = self.transfers.join().expect("transfers");
        assert!(transfers > 20, "{transfers} transfers");
    }
}

struct Transfers {
    stopping: Arc<AtomicBool>,
    netns: Netns,
    to: SocketAddr,
    file: PathBuf,
    others: Vec<String>,
}

impl Transfers {
    fn open(&self) -> HttpConnection {
        let stream = TcpStream::connect_timeout(&self.to, PATIENCE).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        HttpConnection::over(stream)
    }

    /// A connection with a server that stays.
    fn open_long(&self) -> HttpConnection {
        loop {
            let mut connection = self.open();
            let server = connection.get("/").expect("answer").served_by().to_owned();
            if !self.others.contains(&server) {
                return connection;
            }
        }
    }

    /// Transfers until it is enough; how many there were.
    fn run(self) -> u32 {
        self.netns.enter().expect("the customers' namespace");
        let mut long = self.open_long();
        let mut content: Vec<u8> =
            (0..MEGABYTE as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut rounds = 0;
        while !self.stopping.load(Ordering::Relaxed) {
            content.rotate_left(1_001);
            for connection in [&mut self.open(), &mut long] {
                let status = connection.put("/files/transfers", &content).expect("upload").status;
                assert!([201, 204].contains(&status), "status {status}");
                assert!(fs::read(&self.file).expect("the file") == content, "stored, and not what was sent");
                let answer = connection.get("/files/transfers").expect("download");
                assert!(answer.status == 200 && answer.body == content, "fetched, and not what is stored");
            }
            rounds += 1;
            sleep(PAUSE);
        }
        rounds
    }
}
