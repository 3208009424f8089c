//! The vault on disk.
//!
//! `BOT.sessions` holds a slot for each shard. A slot has two halves that are written in turn, each
//! with a generation and a checksum: a write that was torn leaves the other half, one deposit
//! older, which is as good (a RESUME from an older seq replays more). `BOT.COUNT.SHARD.guilds`
//! holds a shard's guild list and is replaced by rename, only when it has changed.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use prost::Message as _;
use tanako_fleet::vault::KEEP_MS;
use tanako_proto::worker::v1::{GuildCounts, SessionDeposit};
use xxhash_rust::xxh3::xxh3_64;

/// Size of half a slot.
const HALF_BYTES: usize = 8 << 10;
const SLOT_BYTES: usize = 2 * HALF_BYTES;
/// Magic, length, checksum, generation.
const HEAD_BYTES: usize = 4 + 4 + 8 + 8;
const MAGIC: [u8; 4] = *b"TKS1";
const GUILDS_MAGIC: [u8; 4] = *b"TKG1";
/// Slots of a bot at most; more shards than Discord gives anyone.
const SLOTS_MAX: usize = 65_536;
/// A guild list at most: far above 2,500 guilds a shard.
const GUILDS_BYTES_MAX: u64 = 8 << 20;
/// Handled interactions that fit into half a slot with room for all else; older ones are dropped
/// from disk, not from memory.
pub(super) const HANDLED_MAX: usize = 500;

/// A session as stored.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Stored {
    /// Process that deposited it.
    #[prost(string, tag = "1")]
    pub(super) process: String,
    /// Its attempt.
    #[prost(uint64, tag = "2")]
    pub(super) attempt: u64,
    /// Milliseconds since 1970.
    #[prost(int64, tag = "3")]
    pub(super) deposited_at: i64,
    /// The deposit without its guild list; unset when the session was discarded.
    #[prost(message, optional, tag = "4")]
    pub(super) deposit: Option<SessionDeposit>,
    /// The shard, also of a discarded session.
    #[prost(uint32, tag = "5")]
    pub(super) shard_id: u32,
    #[prost(uint32, tag = "6")]
    pub(super) shard_count: u32,
    /// How often the hold has passed on.
    #[prost(uint64, tag = "7")]
    pub(super) term: u64,
    /// Processes that handed the shard over.
    #[prost(string, repeated, tag = "8")]
    pub(super) given: Vec<String>,
    /// Marks of sessions that ended.
    #[prost(fixed64, repeated, tag = "9")]
    pub(super) ended: Vec<u64>,
    /// When the session was last known to be connected.
    #[prost(int64, tag = "10")]
    pub(super) seen_at: i64,
    /// The latest deposit.
    #[prost(message, optional, tag = "11")]
    pub(super) last: Option<StoredLast>,
    /// The latest deposit of the holder before.
    #[prost(message, optional, tag = "12")]
    pub(super) before: Option<StoredLast>,
    /// Guilds on the shard, where the list is not kept beside.
    #[prost(uint32, tag = "13")]
    pub(super) guild_count: u32,
}

/// A holder's latest deposit as stored.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StoredLast {
    #[prost(string, tag = "1")]
    pub(super) process: String,
    #[prost(uint64, tag = "2")]
    pub(super) attempt: u64,
    #[prost(int64, tag = "3")]
    pub(super) deposited_at: i64,
    #[prost(uint64, tag = "4")]
    pub(super) seq: u64,
    #[prost(int64, tag = "5")]
    pub(super) last_event_at: i64,
    #[prost(int64, tag = "6")]
    pub(super) stopped_at: i64,
}

/// A guild list as stored.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StoredGuilds {
    /// The session that it belongs to.
    #[prost(string, tag = "1")]
    pub(super) session_id: String,
    #[prost(message, optional, tag = "2")]
    pub(super) guilds: Option<GuildCounts>,
}

/// What is to be written about one shard.
pub(super) struct Write {
    pub(super) bot: String,
    pub(super) stored: Stored,
    /// Set when the list has changed.
    pub(super) guilds: Option<GuildCounts>,
}

/// What was found on disk.
#[derive(Default)]
pub(super) struct Found {
    pub(super) sessions: Vec<(String, Stored, Option<GuildCounts>)>,
    /// Slots and guild lists that were damaged, by bot.
    pub(super) damaged: Vec<(String, usize)>,
}

/// The open files of the vault.
pub(super) struct Slots {
    directory: PathBuf,
    bots: HashMap<String, BotFile>,
    /// Guild lists written since the last sync.
    unsynced: Vec<PathBuf>,
}

struct BotFile {
    file: File,
    slots: HashMap<(u32, u32), Slot>,
    /// Slots on disk, used or not.
    len: usize,
    free: Vec<usize>,
    dirty: bool,
}

#[derive(Clone, Copy)]
struct Slot {
    index: usize,
    generation: u64,
}

impl Slots {
    /// Makes the directory when it is missing, and reads what is there.
    pub(super) fn open(directory: PathBuf) -> io::Result<(Self, Found)> {
        std::fs::create_dir_all(&directory)?;
        let mut slots = Self {
            directory,
            bots: HashMap::new(),
            unsynced: Vec::new(),
        };
        let mut found = Found::default();
        for entry in std::fs::read_dir(&slots.directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|suffix| suffix == "sessions")
                && let Some(bot) = path.file_stem().and_then(|stem| stem.to_str())
            {
                let (file, damaged) = slots.read(bot, &path, &mut found.sessions)?;
                if damaged > 0 {
                    found.damaged.push((bot.to_owned(), damaged));
                }
                slots.bots.insert(bot.to_owned(), file);
            }
        }
        Ok((slots, found))
    }

    fn read(
        &self,
        bot: &str,
        path: &Path,
        sessions: &mut Vec<(String, Stored, Option<GuildCounts>)>,
    ) -> io::Result<(BotFile, usize)> {
        let file = options().read(true).write(true).open(path)?;
        let size = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        let len = size.div_ceil(SLOT_BYTES).min(SLOTS_MAX);
        let mut bot_file = BotFile {
            file,
            slots: HashMap::new(),
            len,
            free: Vec::new(),
            dirty: false,
        };
        let now = jiff::Timestamp::now().as_millisecond();
        let mut damaged = 0;
        let mut newest: HashMap<(u32, u32), i64> = HashMap::new();
        let mut slot = vec![0; SLOT_BYTES];
        for index in 0..len {
            slot.fill(0);
            read_at_most(&bot_file.file, &mut slot, (index * SLOT_BYTES) as u64)?;
            let (first, second) = slot.split_at(HALF_BYTES);
            let best = [first, second]
                .into_iter()
                .filter_map(decode_half)
                .max_by_key(|(generation, _)| *generation);
            let Some((generation, stored)) = best else {
                damaged += usize::from(slot.iter().any(|byte| *byte != 0));
                bot_file.free.push(index);
                continue;
            };
            let key = (stored.shard_id, stored.shard_count);
            if now.saturating_sub(stored.deposited_at.max(stored.seen_at)) > KEEP_MS {
                bot_file.free.push(index);
                continue;
            }
            // Two slots for one shard can only be foreign bytes: the newer one counts.
            if newest
                .get(&key)
                .is_some_and(|at| *at >= stored.deposited_at)
            {
                bot_file.free.push(index);
                continue;
            }
            newest.insert(key, stored.deposited_at);
            bot_file.slots.insert(key, Slot { index, generation });
            let guilds = match &stored.deposit {
                None => None,
                Some(deposit) => match read_guilds(&self.guilds_path(bot, key)) {
                    Ok(Some(list)) if list.session_id == deposit.session_id => list.guilds,
                    Ok(_) => None,
                    Err(()) => {
                        damaged += 1;
                        None
                    }
                },
            };
            sessions.push((bot.to_owned(), stored, guilds));
        }
        Ok((bot_file, damaged))
    }

    /// Writes; with `sync`, all of it is safe once this returns.
    pub(super) fn write(&mut self, writes: &[Write], sync: bool) -> io::Result<()> {
        for write in writes {
            self.write_one(write)?;
        }
        if sync {
            for bot in self.bots.values_mut().filter(|bot| bot.dirty) {
                bot.file.sync_data()?;
                bot.dirty = false;
            }
            for path in self.unsynced.drain(..) {
                match File::open(&path) {
                    Ok(file) => file.sync_data()?,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            File::open(&self.directory)?.sync_all()?;
        }
        Ok(())
    }

    fn write_one(&mut self, write: &Write) -> io::Result<()> {
        let key = (write.stored.shard_id, write.stored.shard_count);
        let path = self.guilds_path(&write.bot, key);
        match (&write.stored.deposit, &write.guilds) {
            (Some(deposit), Some(guilds)) => {
                let list = StoredGuilds {
                    session_id: deposit.session_id.clone(),
                    guilds: Some(guilds.clone()),
                };
                write_guilds(&path, &list)?;
                self.unsynced.push(path);
                if self.unsynced.len() > SLOTS_MAX {
                    self.unsynced.sort_unstable();
                    self.unsynced.dedup();
                }
            }
            (None, _) => {
                if let Err(error) = std::fs::remove_file(&path)
                    && error.kind() != io::ErrorKind::NotFound
                {
                    return Err(error);
                }
            }
            _ => {}
        }
        let bot = self.bot(&write.bot)?;
        let slot = if let Some(slot) = bot.slots.get(&key) {
            *slot
        } else {
            let index = match bot.free.pop() {
                Some(index) => index,
                None if bot.len < SLOTS_MAX => {
                    bot.len += 1;
                    bot.len - 1
                }
                None => return Err(io::Error::other("the vault has no slot left")),
            };
            Slot {
                index,
                // Above whatever a damaged predecessor may have had.
                generation: u64::try_from(write.stored.deposited_at).unwrap_or(0),
            }
        };
        let slot = Slot {
            generation: slot.generation + 1,
            ..slot
        };
        let bytes = encode_half(slot.generation, &write.stored)?;
        let half = (slot.generation % 2) as usize * HALF_BYTES;
        let offset = slot.index * SLOT_BYTES + half;
        bot.file.write_all_at(&bytes, offset as u64)?;
        bot.slots.insert(key, slot);
        bot.dirty = true;
        Ok(())
    }

    /// Empties the slot of a shard of which nothing shall be kept.
    pub(super) fn drop_slot(&mut self, bot: &str, key: (u32, u32)) -> io::Result<()> {
        let path = self.guilds_path(bot, key);
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        if let Some(file) = self.bots.get_mut(bot)
            && let Some(slot) = file.slots.get(&key).copied()
        {
            let offset = (slot.index * SLOT_BYTES) as u64;
            file.file.write_all_at(&[0; SLOT_BYTES], offset)?;
            file.slots.remove(&key);
            file.free.push(slot.index);
            file.dirty = true;
        }
        Ok(())
    }

    fn bot(&mut self, bot: &str) -> io::Result<&mut BotFile> {
        if !self.bots.contains_key(bot) {
            let path = self.directory.join(format!("{bot}.sessions"));
            let file = options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)?;
            let new = BotFile {
                file,
                slots: HashMap::new(),
                len: 0,
                free: Vec::new(),
                dirty: true,
            };
            self.bots.insert(bot.to_owned(), new);
        }
        Ok(self
            .bots
            .get_mut(bot)
            .expect("invariant: the file was opened above"))
    }

    fn guilds_path(&self, bot: &str, (shard, count): (u32, u32)) -> PathBuf {
        self.directory.join(format!("{bot}.{count}.{shard}.guilds"))
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// Fills `buffer` from `offset` as far as the file goes.
fn read_at_most(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64)? {
            0 => break,
            some => done += some,
        }
    }
    Ok(())
}

fn seal(magic: [u8; 4], generation: u64, payload: &[u8]) -> Vec<u8> {
    let mut body = generation.to_le_bytes().to_vec();
    body.extend_from_slice(payload);
    let mut out = Vec::with_capacity(HEAD_BYTES + payload.len());
    out.extend_from_slice(&magic);
    out.extend_from_slice(
        &u32::try_from(payload.len())
            .unwrap_or(u32::MAX)
            .to_le_bytes(),
    );
    out.extend_from_slice(&xxh3_64(&body).to_le_bytes());
    out.extend_from_slice(&body);
    out
}

fn unseal(magic: [u8; 4], bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (found, rest) = bytes.split_first_chunk::<4>()?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<8>()?;
    let body = rest.get(..8_usize.checked_add(u32::from_le_bytes(*len) as usize)?)?;
    if *found != magic || xxh3_64(body) != u64::from_le_bytes(*sum) {
        return None;
    }
    let (generation, payload) = body.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*generation), payload))
}

fn encode_half(generation: u64, stored: &Stored) -> io::Result<Vec<u8>> {
    let bytes = seal(MAGIC, generation, &stored.encode_to_vec());
    if bytes.len() > HALF_BYTES {
        return Err(io::Error::other("the session is larger than its slot"));
    }
    Ok(bytes)
}

fn decode_half(half: &[u8]) -> Option<(u64, Stored)> {
    let (generation, payload) = unseal(MAGIC, half)?;
    Some((generation, Stored::decode(payload).ok()?))
}

fn write_guilds(path: &Path, list: &StoredGuilds) -> io::Result<()> {
    let draft = path.with_extension("draft");
    let mut file = options()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&draft)?;
    file.write_all(&seal(GUILDS_MAGIC, 0, &list.encode_to_vec()))?;
    std::fs::rename(draft, path)
}

/// `Ok(None)` when there is no list, an error when it is damaged.
fn read_guilds(path: &Path) -> Result<Option<StoredGuilds>, ()> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(_) => return Err(()),
    };
    let mut bytes = Vec::new();
    file.take(GUILDS_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(drop)?;
    let (_, payload) = unseal(GUILDS_MAGIC, &bytes).ok_or(())?;
    StoredGuilds::decode(payload).map(Some).map_err(drop)
}
