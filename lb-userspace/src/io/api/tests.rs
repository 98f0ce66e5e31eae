//! The API's sockets and routes, with a few lines in the place of an agent.

mod fuzz;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::*;

/// A folder of its own, removed with everything in it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sluice-api-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn only_a_socket_that_nobody_answers_on_is_replaced() {
    let folder = Folder::new();
    let file = folder.0.join("sluice.toml");
    fs::write(&file, "[agent]").unwrap();
    let error = listen_control(&file).await.unwrap_err();
    assert!(matches!(error, ListenError::NotASocket(_)), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "[agent]");

    let socket = folder.0.join("sluice.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists(), "left behind");
    let control = listen_control(&socket).await.unwrap();
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    let error = listen_control(&socket).await.unwrap_err();
    assert!(matches!(error, ListenError::InUse(_)), "{error}");
    drop(control);
    assert!(!socket.exists());
}

/// Neither the socket of an agent that runs nor a folder is everybody's.
#[tokio::test]
async fn who_may_not_have_the_socket_is_told_to_be_root() {
    let folder = Folder::new();
    let socket = folder.0.join("sluice.sock");
    let control = listen_control(&socket).await.unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).unwrap();
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    for path in [&socket, &folder.0.join("other.sock"), &folder.0.join("other/sluice.sock")] {
        // Of this thread alone, in which all of it happens.
        let root = nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65_534));
        let error = listen_control(path).await;
        nix::unistd::setfsuid(root);
        let error = error.unwrap_err().to_string();
        assert_eq!(error, format!("{}: Permission denied (os error 13); run as root", path.display()));
    }
    drop(control);
}

#[tokio::test]
async fn a_follower_finds_no_socket_while_the_agent_ends() {
    let folder = Folder::new();
    let socket = folder.0.join("sluice.sock");
    let ControlSocket { file, listener } = listen_control(&socket).await.unwrap();
    drop(file);
    let _follower = listen_control(&socket).await.unwrap();
    drop(listener);
    assert!(UnixStream::connect(&socket).await.is_ok());
}

#[tokio::test]
async fn a_socket_that_was_removed_comes_back() {
    let folder = Folder::new();
    let socket = folder.0.join("below/sluice.sock");
    let (file, _requests, server) = serve(&socket).await;
    fs::remove_dir_all(folder.0.join("below")).unwrap();
    let back = async {
        while UnixStream::connect(&socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), back).await.expect("it comes back");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    // What another one made there is not this one's to remove.
    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "another's").unwrap();
    drop(file);
    assert_eq!(fs::read_to_string(&socket).unwrap(), "another's");
    // Nor does it come back once it is given up.
    fs::remove_file(&socket).unwrap();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(!socket.exists());
    server.abort();
}

/// Serves the routes at a socket, which is there as long as the first of what comes back; then, what they ask, and the task.
async fn serve(socket: &Path) -> (SocketFile, mpsc::Receiver<Request>, JoinHandle<io::Result<()>>) {
    let (sender, requests) = mpsc::channel(1);
    let ControlSocket { file, listener } = listen_control(socket).await.unwrap();
    let routes = control_routes(sender).into_make_service_with_connect_info::<Peer>();
    (file, requests, tokio::spawn(axum::serve(listener, routes).into_future()))
}

/// What the routes answer to a request, while `agent` answers theirs.
async fn exchange(request: Vec<u8>, agent: impl FnOnce(Request) + Send + 'static) -> String {
    let folder = Folder::new();
    let socket = folder.0.join("sluice.sock");
    let (_file, mut requests, server) = serve(&socket).await;
    let agent = tokio::spawn(async move {
        if let Some(request) = requests.recv().await {
            agent(request);
        }
    });
    let mut stream = UnixStream::connect(&socket).await.unwrap();
    stream.write_all(&request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    server.abort();
    agent.abort();
    answer
}

fn post(path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: sluice\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n"
    );
    (head + body).into_bytes()
}

#[tokio::test]
async fn health_is_what_the_agent_says() {
    let get = b"GET /healthz HTTP/1.1\r\nhost: sluice\r\nconnection: close\r\n\r\n".to_vec();
    let serves = exchange(get.clone(), |request| {
        let Request::Health(answer) = request else { panic!("another request") };
        answer.send(Ok(())).unwrap();
    });
    let serves = serves.await;
    assert!(serves.starts_with("HTTP/1.1 200 ") && serves.ends_with("\r\n\r\nok\n"), "{serves}");
    // An agent that ends does not answer any more.
    let gone = exchange(get, drop).await;
    assert!(gone.starts_with("HTTP/1.1 500 "), "{gone}");
}

#[tokio::test]
async fn a_large_configuration_is_taken() {
    let config = "#".repeat(20 << 20);
    let length = config.len();
    let request = ApplyRequest { config, name: "large".into(), dry_run: true, ..ApplyRequest::default() };
    let body = serde_json::to_string(&request).unwrap();
    let answer = exchange(post("/v1/apply", &body), move |request| {
        let Request::Change(ChangeRequest { asked: Asked::Apply(request), uid, answer }) = request else {
            panic!("another request")
        };
        assert_eq!((request.config.len(), uid), (length, Some(nix::unistd::getuid().as_raw())));
        answer.send(Err(ApiError::invalid("seen"))).unwrap();
    });
    let answer = answer.await;
    assert!(answer.starts_with("HTTP/1.1 422 ") && answer.contains("seen"), "{answer}");
}

#[tokio::test]
async fn detaching_may_name_a_pin_directory() {
    let pin_dir = |request: Vec<u8>| async {
        let (sender, receiver) = oneshot::channel();
        let answer = exchange(request, |request| {
            let Request::Detach(request, answer) = request else { panic!("another request") };
            answer.send(Ok(Detached { interfaces: Vec::new() })).unwrap();
            sender.send(request.pin_dir).unwrap();
        });
        assert!(answer.await.starts_with("HTTP/1.1 200 "));
        receiver.await.unwrap()
    };
    assert_eq!(pin_dir(post("/v1/detach", r#"{"pin_dir":"/a"}"#)).await, Some(PathBuf::from("/a")));
    assert_eq!(pin_dir(post("/v1/detach", "{}")).await, None);
    let bare = b"POST /v1/detach HTTP/1.1\r\nhost: sluice\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(pin_dir(bare.to_vec()).await, None);
}

#[tokio::test]
async fn what_is_no_request_is_told_as_every_other_error() {
    let cases = [
        (
            "/v1/edit",
            r#"{"edit":{"kind":"service_remove","service":"web","force":1}}"#,
            "unknown field `force`",
        ),
        ("/v1/edit", r#"{"edit":{"kind":"service_burn","service":"web"}}"#, "unknown variant `service_burn`"),
        (
            "/v1/edit",
            r#"{"edit":{"kind":"service_remove","service":"web"},"dryrun":true}"#,
            "unknown field `dryrun`",
        ),
        ("/v1/apply", "{", "EOF"),
        ("/v1/rollback", r#"{"revision":-1}"#, "invalid value"),
    ];
    for (path, body, expected) in cases {
        let answer = exchange(post(path, body), |_| panic!("nothing to ask the agent")).await;
        assert!(answer.starts_with("HTTP/1.1 422 "), "{path}: {answer}");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        let error: ApiError = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"));
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.errors[0].contains(expected), "{path}: {error:?}");
    }
}

#[tokio::test]
async fn another_method_is_told_which_the_path_takes() {
    for (method, path, taken) in
        [("PUT", "/v1/apply", "POST"), ("GET", "/v1/explain", "POST"), ("DELETE", "/metrics", "GET and HEAD")]
    {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: sluice\r\nconnection: close\r\n\r\n");
        let answer = exchange(request.into_bytes(), |_| panic!("nothing to ask the agent")).await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
        assert!(answer.contains(&format!("\"{path} takes {taken}, not {method}\"")), "{answer}");
        assert!(answer.contains(&format!("allow: {}\r\n", taken.replace(" and ", ","))), "{answer}");
    }
}
