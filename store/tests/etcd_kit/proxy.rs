//! A way to a server that can be cut, or lose one side of a talk.

use std::{future::pending, sync::Arc};

use tokio::{
    io::{self, AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// What does not get through any more once the client has said something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// What it said, and all that comes after it.
    Question,
    /// Whatever the server says from then on.
    Answer,
}

/// Forwards connections; ends when dropped.
pub struct Proxy {
    /// Where it listens.
    pub url: String,
    way: Arc<watch::Sender<Way>>,
    task: JoinHandle<()>,
}

/// How things are.
#[derive(Default)]
struct Way {
    /// Number of the cut.
    cut: u64,
    closed: bool,
    /// What the client is going to say, and what is lost then.
    trap: Option<(Vec<u8>, Lost)>,
    lost: Option<Lost>,
}

impl Proxy {
    /// To the server at `target`.
    pub async fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let way = Arc::new(watch::Sender::new(Way::default()));
        let task = tokio::spawn(serve(listener, target.to_owned(), way.clone()));
        Self { url, way, task }
    }

    /// Breaks all connections; new ones are taken.
    pub fn interrupt(&self) {
        self.way.send_modify(|way| way.cut += 1);
    }

    /// Breaks all connections and takes no new ones, or takes them again.
    pub fn open(&self, open: bool) {
        self.way.send_modify(|way| {
            way.cut += 1;
            way.closed = !open;
        });
    }

    /// Loses one side of all talk from the moment that a client says this.
    pub fn lose_at(&self, words: &str, what: Lost) {
        self.way
            .send_modify(|way| way.trap = Some((words.as_bytes().to_vec(), what)));
    }

    /// Waits until it has been said.
    pub async fn lost(&self) {
        let mut way = self.way.subscribe();
        let lost = way.wait_for(|way| way.lost.is_some()).await;
        lost.expect("the sender is here");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.interrupt();
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, target: String, way: Arc<watch::Sender<Way>>) {
    while let Ok((client, _)) = listener.accept().await {
        let mut cuts = way.subscribe();
        let cut = cuts.borrow_and_update().cut;
        if way.borrow().closed {
            continue;
        }
        let (target, way) = (target.clone(), way.clone());
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(&target).await else {
                return;
            };
            let (asks, answered) = client.into_split();
            let (answers, asked) = server.into_split();
            let both = async {
                tokio::try_join!(
                    pass(asks, asked, &way, Lost::Question),
                    pass(answers, answered, &way, Lost::Answer),
                )
            };
            tokio::select! {
                _ = both => {}
                _ = cuts.wait_for(|way| way.cut != cut) => {}
            }
        });
    }
}

/// Copies one side of the talk until it is lost.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: &watch::Sender<Way>,
    side: Lost,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    // The end of what was said before: words may come in two parts.
    let mut said = Vec::new();
    loop {
        let len = from.read(&mut buffer).await?;
        if len == 0 {
            return to.shutdown().await;
        }
        if side == Lost::Question {
            said.extend_from_slice(&buffer[..len]);
            way.send_if_modified(|way| spring(way, &mut said));
        }
        if way.borrow().lost == Some(side) {
            pending::<()>().await;
        }
        to.write_all(&buffer[..len]).await?;
    }
}

/// Whether the words have been said now.
fn spring(way: &mut Way, said: &mut Vec<u8>) -> bool {
    let Some((words, what)) = &way.trap else {
        said.clear();
        return false;
    };
    if said.windows(words.len()).any(|part| part == words) {
        way.lost = Some(*what);
        way.trap = None;
        return true;
    }
    said.drain(..said.len().saturating_sub(words.len()));
    false
}
