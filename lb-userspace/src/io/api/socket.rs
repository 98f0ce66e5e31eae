//! A path → the Unix socket that requests come in on, there as long as the agent is.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::serve::Listener;
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::sleep;

use super::ListenError;

/// How often it is looked whether the socket's file is still there, and how long after a request could not be taken in it is tried again.
const LOOK: Duration = Duration::from_secs(1);

/// The Unix socket, for root and its group only.
#[derive(Debug)]
pub struct ControlSocket {
    /// Its file. Dropped before the listener, there is no moment in which another agent finds a socket that nobody
    /// answers on, and makes its own, which this one would then remove.
    pub file: SocketFile,
    /// What requests come in on.
    pub listener: ControlListener,
}

/// A socket's path, and the file there that is this agent's.
#[derive(Clone, Debug)]
struct Name {
    path: PathBuf,
    inode: Arc<AtomicU64>,
}

impl Name {
    /// An inode that no file has: the socket is given up.
    const GIVEN_UP: u64 = 0;

    fn look(&self) -> Found {
        match fs::symlink_metadata(&self.path) {
            Ok(metadata) if metadata.ino() == self.inode.load(Ordering::Relaxed) => Found::Own,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Found::Nothing,
            _ => Found::Other,
        }
    }
}

/// What is at the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Own,
    Nothing,
    Other,
}

/// A socket's file, which is removed when this is dropped, if it is still the same.
#[derive(Debug)]
pub struct SocketFile(Name);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.0.look() == Found::Own {
            // If it is gone by now, so much the better.
            let _ = fs::remove_file(&self.0.path);
        }
        self.0.inode.store(Name::GIVEN_UP, Ordering::Relaxed);
    }
}

/// Takes requests in, and makes the socket anew if its file is gone: who tidies up below `/run` is not to keep operators out.
#[derive(Debug)]
pub struct ControlListener {
    listener: UnixListener,
    name: Name,
    /// What is at the path, as was told last.
    told: Found,
}

impl ControlListener {
    fn look_after_file(&mut self) {
        if self.name.inode.load(Ordering::Relaxed) == Name::GIVEN_UP {
            return;
        }
        let path = self.name.path.display();
        let found = self.name.look();
        let is_news = std::mem::replace(&mut self.told, found) != found;
        match found {
            Found::Own => {}
            Found::Other if is_news => {
                log::error!(
                    "{path}: something else is where the API's socket was; remove it, and the socket comes back"
                );
            }
            Found::Other => {}
            Found::Nothing => match bind(&self.name.path) {
                Ok((listener, inode)) => {
                    self.listener = listener;
                    self.name.inode.store(inode, Ordering::Relaxed);
                    log::warn!("{path}: the API's socket was removed, and is made anew");
                }
                Err(error) if is_news => {
                    log::error!(
                        "the API's socket was removed, and cannot be made anew: {error}; it is tried again and again"
                    );
                }
                Err(_) => {}
            },
        }
    }
}

impl Listener for ControlListener {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok(accepted) => return accepted,
                    Err(error) => {
                        log::error!("a request to the API could not be taken in: {error}");
                        sleep(LOOK).await;
                    }
                },
                () = sleep(LOOK) => self.look_after_file(),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Listens on a Unix socket; one left behind by an agent that was killed is replaced.
pub async fn listen_control(path: &Path) -> Result<ControlSocket, ListenError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket(path.to_owned()));
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(path, error)),
        _ => {}
    }
    match UnixStream::connect(path).await {
        Ok(_) => return Err(ListenError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(path, error)),
            _ => {}
        },
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(failed(path, error)),
        Err(_) => {}
    }
    let (listener, inode) = bind(path)?;
    let name = Name { path: path.to_owned(), inode: Arc::new(AtomicU64::new(inode)) };
    let file = SocketFile(name.clone());
    Ok(ControlSocket { file, listener: ControlListener { listener, name, told: Found::Own } })
}

/// Makes the socket; yields its file's inode as well.
fn bind(path: &Path) -> Result<(UnixListener, u64), ListenError> {
    let bound = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let listener = UnixListener::bind(path)?;
        let made = fs::set_permissions(path, fs::Permissions::from_mode(0o660))
            .and_then(|()| fs::symlink_metadata(path));
        if made.is_err() {
            // Else it would be taken for another's.
            let _ = fs::remove_file(path);
        }
        Ok((listener, made?.ino()))
    };
    bound().map_err(|error| failed(path, error))
}

fn failed(path: &Path, cause: io::Error) -> ListenError {
    let path = path.to_owned();
    match cause.kind() {
        io::ErrorKind::PermissionDenied => ListenError::Denied { path, cause },
        _ => ListenError::Socket { path, cause },
    }
}
