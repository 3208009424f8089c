//! Guild settings in the database, cached in this process.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::{Setting, Settings};
use crate::database::cache::Cache;
use crate::database::{Database, DbError, Repeat};

/// Guilds cached.
const CACHED_GUILDS: usize = 2_000;
/// A change by another process is seen after this time at the latest.
const CACHED_FOR: Duration = Duration::from_secs(60);
/// Attempts to write when others write the same guild's settings.
const CAS_TRIES: usize = 8;

/// Reads and writes guild settings.
pub struct SettingsStore {
    database: Arc<Database>,
    cache: Mutex<Cache<u64, Settings>>,
}

impl SettingsStore {
    /// With an empty cache.
    pub fn new(database: Arc<Database>) -> Self {
        Self {
            database,
            cache: Mutex::new(Cache::new(CACHED_GUILDS, CACHED_FOR)),
        }
    }

    fn cache(&self) -> MutexGuard<'_, Cache<u64, Settings>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hits among reads and guilds held.
    pub fn cache_figures(&self) -> (f64, usize) {
        let cache = self.cache();
        (cache.hit_ratio(), cache.len())
    }

    /// The bot left the guild.
    pub fn forget(&self, guild: u64) {
        self.cache().invalidate(guild);
    }

    /// The settings of a guild; defaults when it has no row yet.
    pub async fn get(&self, guild: u64) -> Result<Settings, DbError> {
        let generation = {
            let mut cache = self.cache();
            if let Some(settings) = cache.get(guild, Instant::now()) {
                return Ok(settings);
            }
            cache.generation()
        };
        let settings = Settings::read(&self.stored(guild).await?.unwrap_or_default());
        self.cache()
            .fill(generation, guild, settings, Instant::now(), |n| {
                fastrand::usize(..n)
            });
        Ok(settings)
    }

    /// The stored object, not cached.
    async fn stored(&self, guild: u64) -> Result<Option<Map<String, Value>>, DbError> {
        let row = self
            .database
            .find_one("guilds", json!({ "guild_id": guild }))
            .await?;
        Ok(row.map(|mut row| match row.remove("settings") {
            Some(Value::Object(settings)) => settings,
            // The original server hands JSON columns out as text.
            Some(Value::String(text)) => serde_json::from_str(&text).unwrap_or_default(),
            _ => Map::new(),
        }))
    }

    /// Makes sure that the guild has a row. True when it was created.
    pub async fn ensure(&self, guild: u64) -> Result<bool, DbError> {
        if self.stored(guild).await?.is_some() {
            return Ok(false);
        }
        let data = json!({ "table": "guilds", "row": { "guild_id": guild } });
        match self.database.call("insert", data, Repeat::Harmless).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_duplicate() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sets one setting, or puts it back to its default, without losing what others write meanwhile.
    /// Gives back the settings before and after.
    pub async fn set(
        &self,
        guild: u64,
        setting: &Setting,
        value: Option<&Value>,
    ) -> Result<(Settings, Settings), DbError> {
        self.change(guild, |stored| {
            match value {
                Some(value) => stored.insert(setting.name.to_owned(), value.clone()),
                None => stored.remove(setting.name),
            };
        })
        .await
    }

    /// Puts all settings back to their defaults.
    pub async fn reset(&self, guild: u64) -> Result<(Settings, Settings), DbError> {
        self.change(guild, |stored| {
            stored.retain(|name, _| Setting::find(name).is_none());
        })
        .await
    }

    async fn change(
        &self,
        guild: u64,
        edit: impl Fn(&mut Map<String, Value>),
    ) -> Result<(Settings, Settings), DbError> {
        self.ensure(guild).await?;
        for _ in 0..CAS_TRIES {
            let before = self.stored(guild).await?.unwrap_or_default();
            let mut after = before.clone();
            edit(&mut after);
            let settings = (Settings::read(&before), Settings::read(&after));
            if before == after {
                return Ok(settings);
            }
            let swapped = self.swap(guild, before, after).await;
            self.cache().invalidate(guild);
            if swapped? {
                return Ok(settings);
            }
        }
        Err(DbError::Unavailable)
    }

    async fn swap(
        &self,
        guild: u64,
        before: Map<String, Value>,
        after: Map<String, Value>,
    ) -> Result<bool, DbError> {
        let now = jiff::Timestamp::now().to_string();
        let set = json!({ "settings": after, "updated_at": now });
        let data = json!({
            "table": "guilds",
            "conditions": { "guild_id": guild },
            "expected": { "settings": before },
            "data": set,
        });
        match self
            .database
            .call("compare_and_set", data, Repeat::Harmless)
            .await
        {
            Ok(reply) => Ok(reply
                .get("swapped")
                .and_then(Value::as_bool)
                .unwrap_or(false)),
            // A node of the original protocol: the last writer wins there, it offers nothing better.
            Err(error) if error.is_unknown_action() => {
                let data =
                    json!({ "table": "guilds", "conditions": { "guild_id": guild }, "data": set });
                self.database
                    .call("update", data, Repeat::Harmless)
                    .await
                    .map(|_| true)
            }
            Err(error) => Err(error),
        }
    }
}
