//! A way to a server that can be cut.

use std::sync::Arc;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// Forwards connections; ends when dropped.
pub struct Proxy {
    /// Where it listens.
    pub url: String,
    /// Number of the cut, and whether connections are taken.
    cut: Arc<watch::Sender<(u64, bool)>>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// To the server at `target`.
    pub async fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let cut = Arc::new(watch::Sender::new((0, true)));
        let task = tokio::spawn(serve(listener, target.to_owned(), cut.clone()));
        Self { url, cut, task }
    }

    /// Breaks all connections; new ones are taken.
    pub fn interrupt(&self) {
        self.cut.send_modify(|cut| cut.0 += 1);
    }

    /// Breaks all connections and takes no new ones, or takes them again.
    pub fn open(&self, open: bool) {
        self.cut.send_modify(|cut| *cut = (cut.0 + 1, open));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.interrupt();
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, target: String, cut: Arc<watch::Sender<(u64, bool)>>) {
    while let Ok((mut client, _)) = listener.accept().await {
        let mut cuts = cut.subscribe();
        if !cuts.borrow_and_update().1 {
            continue;
        }
        let target = target.clone();
        tokio::spawn(async move {
            let Ok(mut server) = TcpStream::connect(&target).await else {
                return;
            };
            tokio::select! {
                _ = copy_bidirectional(&mut client, &mut server) => {}
                _ = cuts.changed() => {}
            }
        });
    }
}
