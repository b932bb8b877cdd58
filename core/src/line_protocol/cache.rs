//! What the parser remembers from request to request: the database of known series.
//!
//! A series is known by the very bytes of its measurement and tags, so that a line of a known series costs one
//! comparison: series come back in the same order more often than not, so every entry names the one that followed it
//! last time, and only a wrong guess is hashed. An entry knows its table, one dictionary key per tag, and the
//! fingerprint of its tag set.
//!
//! **Bound.** Everything here counts towards [`LINE_CACHE_BYTES_MAX`](crate::limits::LINE_CACHE_BYTES_MAX). The cache is dropped whole between two requests once
//! it is over; so a new generation of dictionaries starts with it, and keys of two generations never meet.
//!
//! **Not here:** schemas. A dictionary or an entry says nothing about which columns a table has, so nothing here goes
//! stale when a table is dropped and created anew.

use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, LazyLock};

use ahash::RandomState;
use arrow::array::{Array, StringArray};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use hashbrown::HashTable;

/// Seeds of fingerprints: one per process, since batches of different shards meet in one table.
static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// A dictionary below this many bytes is copied into a new snapshot whenever it grew.
const SNAPSHOT_BYTES_FREE: usize = 16 * 1024;
/// A larger one only once it grew by a fraction of at least one in this many.
const SNAPSHOT_GROWTH: usize = 8;

/// What a database, a table or a tag costs beside its name.
const ENTRY_BYTES: usize = 128;
/// What a dictionary entry costs beside its text.
const DICTIONARY_ENTRY_BYTES: usize = 32;
/// What the index takes per series.
const SERIES_INDEX_BYTES: usize = 8;

/// No entry, no column.
pub(super) const NONE: u32 = u32::MAX;

/// The values of one tag of one table.
pub(super) struct TagDictionary {
    pub name: Arc<str>,
    offsets: Vec<i32>,
    text: Vec<u8>,
    index: HashTable<(u64, i32)>,
    snapshot: StringArray,
}

impl TagDictionary {
    fn new(name: &str) -> Self {
        TagDictionary {
            name: name.into(),
            offsets: vec![0],
            text: Vec::new(),
            index: HashTable::new(),
            snapshot: StringArray::new_null(0),
        }
    }

    /// The value of `key`.
    pub(super) fn value(&self, key: i32) -> &[u8] {
        let at = key as usize;
        &self.text[self.offsets[at] as usize..self.offsets[at + 1] as usize]
    }

    /// The key of `value`, and the hash of name and value together.
    fn intern(&mut self, value: &[u8]) -> (i32, u64) {
        let hash = tag_hash(self.name.as_bytes(), value);
        if let Some(&(_, key)) = self.index.find(hash, |&(h, key)| h == hash && self.value(key) == value) {
            return (key, hash);
        }
        let key = (self.offsets.len() - 1) as i32;
        self.text.extend_from_slice(value);
        self.offsets.push(self.text.len() as i32);
        self.index.insert_unique(hash, (hash, key), |&(h, _)| h);
        (key, hash)
    }

    /// All values as Arrow, if that is cheap: nothing was added, or enough to pay for the copy. `None` means that the
    /// caller had better build a dictionary of just the values that it uses.
    pub(super) fn snapshot(&mut self) -> Option<StringArray> {
        let count = self.offsets.len() - 1;
        let added = count - self.snapshot.len();
        if added > 0 {
            if self.text.len() > SNAPSHOT_BYTES_FREE && added * SNAPSHOT_GROWTH < count {
                return None;
            }
            self.snapshot = strings(self.offsets.clone(), self.text.clone());
        }
        Some(self.snapshot.clone())
    }
}

/// An Arrow array over `text`, which is UTF-8 because requests are checked before they are parsed.
pub(super) fn strings(offsets: Vec<i32>, text: Vec<u8>) -> StringArray {
    StringArray::new(OffsetBuffer::new(ScalarBuffer::from(offsets)), Buffer::from_vec(text), None)
}

fn tag_hash(name: &[u8], value: &[u8]) -> u64 {
    let mut hasher = SEED.build_hasher();
    hasher.write_usize(name.len());
    hasher.write(name);
    hasher.write(value);
    hasher.finish()
}

/// What is remembered of one table.
pub(super) struct TableCache {
    db: u32,
    pub name: Arc<str>,
    pub tags: Vec<TagDictionary>,
    tag_index: HashTable<u32>,
    /// The request that last met this table, and the number of its batch there.
    pub seen_in: u64,
    pub batch: u32,
    /// Field columns of the last batch; the next will have about as many.
    pub fields: usize,
}

/// One tag of a series: which of the table's dictionaries, and the key in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct SeriesTag {
    pub tag: u32,
    pub key: i32,
}

/// A known series.
pub(super) struct Series {
    hash: u64,
    pub fingerprint: u64,
    text_from: usize,
    text_len: usize,
    tags_from: usize,
    tags_len: usize,
    pub table: u32,
    db: u32,
    /// The series whose line came behind a line of this one last time.
    pub next: u32,
}

/// See the header.
#[derive(Default)]
pub(super) struct Cache {
    hasher: RandomState,
    dbs: Vec<Box<str>>,
    db_index: HashTable<u32>,
    pub tables: Vec<TableCache>,
    table_index: HashTable<u32>,
    pub series: Vec<Series>,
    series_index: HashTable<u32>,
    /// Raw prefixes of all series.
    text: Vec<u8>,
    /// Tags of all series.
    tags: Vec<SeriesTag>,
    bytes: usize,
}

impl Cache {
    /// The number of database `db`.
    pub(super) fn db(&mut self, db: &str) -> u32 {
        let hash = self.hasher.hash_one(db);
        if let Some(&at) = self.db_index.find(hash, |&at| self.dbs[at as usize].as_ref() == db) {
            return at;
        }
        let at = self.dbs.len() as u32;
        self.dbs.push(db.into());
        self.bytes += db.len() + ENTRY_BYTES;
        let (dbs, hasher) = (&self.dbs, &self.hasher);
        self.db_index.insert_unique(hash, at, |&at| hasher.hash_one(dbs[at as usize].as_ref()));
        at
    }

    /// The number of `table`, and of its tag `tag`, created where they are new.
    pub(super) fn table(&mut self, db: u32, table: &str) -> u32 {
        let hash = self.hasher.hash_one((db, table));
        let found = self.table_index.find(hash, |&at| {
            let known = &self.tables[at as usize];
            known.db == db && known.name.as_ref() == table
        });
        if let Some(&at) = found {
            return at;
        }
        let at = self.tables.len() as u32;
        self.bytes += table.len() + 2 * ENTRY_BYTES;
        self.tables.push(TableCache {
            db,
            name: table.into(),
            tags: Vec::new(),
            tag_index: HashTable::new(),
            seen_in: 0,
            batch: NONE,
            fields: 0,
        });
        let (tables, hasher) = (&self.tables, &self.hasher);
        self.table_index.insert_unique(hash, at, |&at| {
            let known = &tables[at as usize];
            hasher.hash_one((known.db, known.name.as_ref()))
        });
        at
    }

    /// The number of tag `name` of `table`.
    pub(super) fn tag(&mut self, table: u32, name: &str) -> u32 {
        let hash = self.hasher.hash_one(name);
        let table = &mut self.tables[table as usize];
        if let Some(&at) = table.tag_index.find(hash, |&at| table.tags[at as usize].name.as_ref() == name) {
            return at;
        }
        let at = table.tags.len() as u32;
        self.bytes += name.len() + 3 * ENTRY_BYTES;
        table.tags.push(TagDictionary::new(name));
        let (tags, hasher) = (&table.tags, &self.hasher);
        table.tag_index.insert_unique(hash, at, |&at| hasher.hash_one(tags[at as usize].name.as_ref()));
        at
    }

    /// Puts a tag value into its dictionary.
    pub(super) fn intern(&mut self, table: u32, tag: u32, value: &[u8]) -> (i32, u64) {
        let dictionary = &mut self.tables[table as usize].tags[tag as usize];
        let before = dictionary.offsets.len();
        let interned = dictionary.intern(value);
        if dictionary.offsets.len() > before {
            // The text stands in the dictionary and in its snapshot, with an offset each, and once in the index.
            self.bytes += 2 * value.len() + DICTIONARY_ENTRY_BYTES;
        }
        interned
    }

    fn hash_text(&self, db: u32, text: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(text);
        hasher.write_u32(db);
        hasher.finish()
    }

    /// True if `series` is a series of `db` and a line that starts with its bytes and a space starts at `at`; then its
    /// length.
    #[inline]
    pub(super) fn matches(&self, series: u32, db: u32, line: &[u8]) -> Option<usize> {
        let known = self.series.get(series as usize)?;
        let (head, rest) = line.split_at_checked(known.text_len)?;
        let text = &self.text[known.text_from..known.text_from + known.text_len];
        (rest.first() == Some(&b' ') && head == text && known.db == db).then_some(known.text_len)
    }

    /// The series with the raw prefix `text`.
    pub(super) fn find(&self, db: u32, text: &[u8]) -> Option<u32> {
        let hash = self.hash_text(db, text);
        let found = self.series_index.find(hash, |&at| {
            let known = &self.series[at as usize];
            known.hash == hash
                && known.db == db
                && &self.text[known.text_from..known.text_from + known.text_len] == text
        });
        found.copied()
    }

    /// Remembers a series.
    pub(super) fn insert(&mut self, db: u32, table: u32, text: &[u8], tags: &[SeriesTag], fingerprint: u64) -> u32 {
        let hash = self.hash_text(db, text);
        let at = self.series.len() as u32;
        self.series.push(Series {
            hash,
            fingerprint,
            text_from: self.text.len(),
            text_len: text.len(),
            tags_from: self.tags.len(),
            tags_len: tags.len(),
            table,
            db,
            next: NONE,
        });
        self.bytes += text.len() + size_of_val(tags) + size_of::<Series>() + SERIES_INDEX_BYTES;
        self.text.extend_from_slice(text);
        self.tags.extend_from_slice(tags);
        let series = &self.series;
        self.series_index.insert_unique(hash, at, |&at| series[at as usize].hash);
        at
    }

    /// The tags of a series in the order of its line.
    #[inline]
    pub(super) fn tags(&self, series: u32) -> &[SeriesTag] {
        let known = &self.series[series as usize];
        &self.tags[known.tags_from..known.tags_from + known.tags_len]
    }

    /// Bytes held, an upper estimate.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
