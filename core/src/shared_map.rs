//! An ordered map whose copies share what they have in common: for values that many read while one changes them.
//!
//! **Mechanism.** Entries lie in order in chunks of at most `CHUNK_MAX`; the map is the list of its chunks, each with its first key.
//! A copy of the map raises a counter. A change of a map that others hold copies the chunk that it is about and the list of
//! chunks: of 10,000 entries some hundred, of 100,000 some thousand. Where nobody else holds it nothing is copied, so that many
//! changes in a row cost what one costs.
//!
//! **Invariants.** No chunk is empty, and each has its first key beside it; keys ascend over all chunks; two neighbours have
//! more than half of `CHUNK_MAX` entries together, so that what was taken out leaves no trail of small chunks.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// Entries of a chunk: what a change copies at least, and by what the list of chunks is shorter than the map.
const CHUNK_MAX: usize = 128;

/// See the module's header.
pub struct SharedMap<K, V> {
    chunks: Arc<Vec<Chunk<K, V>>>,
    len: usize,
}

struct Chunk<K, V> {
    first: K,
    entries: Arc<Vec<(K, V)>>,
}

impl<K: Clone, V> Chunk<K, V> {
    /// None of no entries.
    fn of(entries: Vec<(K, V)>) -> Option<Self> {
        Some(Chunk { first: entries.first()?.0.clone(), entries: Arc::new(entries) })
    }
}

impl<K: Clone, V> Clone for Chunk<K, V> {
    fn clone(&self) -> Self {
        Chunk { first: self.first.clone(), entries: self.entries.clone() }
    }
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        SharedMap { chunks: self.chunks.clone(), len: self.len }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        SharedMap { chunks: Arc::default(), len: 0 }
    }
}

impl<K, V> SharedMap<K, V> {
    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All entries in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.chunks.iter().flat_map(|chunk| chunk.entries.iter()).map(|(key, value)| (key, value))
    }

    /// All keys in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// All values in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// The value of the key that is `Equal`; `order` says how a key stands to it.
    pub fn find(&self, order: impl Fn(&K) -> Ordering) -> Option<&V> {
        let (chunk, at) = self.place(order);
        Some(&self.chunks.get(chunk)?.entries[at.ok()?].1)
    }

    /// The entries from the first key on that is not `Less`, in order.
    pub fn iter_from(&self, order: impl Fn(&K) -> Ordering) -> impl Iterator<Item = (&K, &V)> {
        let (chunk, at) = self.place(order);
        let at = at.unwrap_or_else(|at| at);
        let rest = self.chunks.get(chunk..).unwrap_or_default();
        rest.iter().flat_map(|chunk| chunk.entries.iter()).skip(at).map(|(key, value)| (key, value))
    }

    /// The chunk that has the key, or would have it, and where in it that is.
    fn place(&self, order: impl Fn(&K) -> Ordering) -> (usize, Result<usize, usize>) {
        let behind = self.chunks.partition_point(|chunk| order(&chunk.first) != Ordering::Greater);
        let chunk = behind.saturating_sub(1);
        let at = match self.chunks.get(chunk) {
            Some(chunk) => chunk.entries.binary_search_by(|(key, _)| order(key)),
            None => Err(0),
        };
        (chunk, at)
    }
}

impl<K: Ord, V> SharedMap<K, V> {
    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.find(|known| known.borrow().cmp(key))
    }

    /// Whether it has the key.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    /// Sets the value of a key; the one that it had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let (index, at) = self.place(|known| known.cmp(&key));
        let chunks = Arc::make_mut(&mut self.chunks);
        let Some(chunk) = chunks.get_mut(index) else {
            chunks.extend(Chunk::of(vec![(key, value)]));
            self.len = 1;
            return None;
        };
        let entries = Arc::make_mut(&mut chunk.entries);
        match at {
            Ok(at) => return Some(std::mem::replace(&mut entries[at].1, value)),
            Err(at) => entries.insert(at, (key, value)),
        }
        self.len += 1;
        let upper = if entries.len() > CHUNK_MAX { entries.split_off(entries.len() / 2) } else { Vec::new() };
        if at == Err(0) {
            chunk.first = entries[0].0.clone();
        }
        if let Some(upper) = Chunk::of(upper) {
            chunks.insert(index + 1, upper);
        }
        None
    }

    /// Takes a key out; the value that it had.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let (index, at) = self.place(|known| known.borrow().cmp(key));
        let at = at.ok()?;
        let chunks = Arc::make_mut(&mut self.chunks);
        let entries = Arc::make_mut(&mut chunks[index].entries);
        let (_, value) = entries.remove(at);
        self.len -= 1;
        match entries.first() {
            Some((first, _)) => {
                chunks[index].first = first.clone();
                Self::merge(chunks, index + 1);
            }
            None => drop(chunks.remove(index)),
        }
        Self::merge(chunks, index);
        Some(value)
    }

    /// Puts a chunk into the one before it if both have become small.
    fn merge(chunks: &mut Vec<Chunk<K, V>>, index: usize) {
        let Some(before) = index.checked_sub(1) else { return };
        let small = |pair: &[Chunk<K, V>]| pair[0].entries.len() + pair[1].entries.len() <= CHUNK_MAX / 2;
        if chunks.get(before..=index).is_some_and(small) {
            let chunk = chunks.remove(index);
            Arc::make_mut(&mut chunks[before].entries).extend(chunk.entries.iter().cloned());
        }
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for SharedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = SharedMap::default();
        map.extend(entries);
        map
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u16, u32),
        Remove(u16),
        /// Everything in a range.
        Clear(u16, u16),
        /// From here on the map as it is now must stay what it is.
        Keep,
    }

    fn step() -> impl Strategy<Value = Step> {
        // Few enough keys that they are met again, enough for several chunks.
        let key = 0..900_u16;
        prop_oneof![
            12 => (key.clone(), any::<u32>()).prop_map(|(key, value)| Step::Insert(key, value)),
            4 => key.clone().prop_map(Step::Remove),
            1 => (key, 0..300_u16).prop_map(|(from, len)| Step::Clear(from, from + len)),
            1 => Just(Step::Keep),
        ]
    }

    fn check(map: &SharedMap<u16, u32>, model: &BTreeMap<u16, u32>) {
        assert!(map.iter().eq(model.iter()), "{map:?} is not {model:?}");
        assert_eq!((map.len(), map.is_empty()), (model.len(), model.is_empty()));
        for chunk in map.chunks.iter() {
            assert!(!chunk.entries.is_empty() && chunk.entries.len() <= CHUNK_MAX);
            assert_eq!(chunk.first, chunk.entries[0].0);
        }
        for pair in map.chunks.windows(2) {
            assert!(pair[0].entries.len() + pair[1].entries.len() > CHUNK_MAX / 2);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn it_is_what_an_ordered_map_is_and_copies_stay_as_they_were(steps in prop::collection::vec(step(), 1..1200)) {
            let (mut map, mut model) = (SharedMap::default(), BTreeMap::new());
            let mut kept = Vec::new();
            for step in steps {
                match step {
                    Step::Insert(key, value) => prop_assert_eq!(map.insert(key, value), model.insert(key, value)),
                    Step::Remove(key) => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                    Step::Clear(from, to) => {
                        for key in from..to {
                            prop_assert_eq!(map.remove(&key), model.remove(&key));
                        }
                    }
                    Step::Keep => kept.push((map.clone(), model.clone())),
                }
            }
            check(&map, &model);
            for (map, model) in &kept {
                check(map, model);
            }
            for key in (0..900).step_by(7) {
                prop_assert_eq!(map.get(&key), model.get(&key));
                let from: Vec<_> = map.iter_from(|known| known.cmp(&key)).take(5).collect();
                let expected: Vec<_> = model.range(key..).take(5).collect();
                prop_assert_eq!(from, expected);
            }
            prop_assert_eq!(&map, &model.into_iter().collect());
        }
    }

    #[test]
    fn a_change_copies_one_chunk_and_shares_the_others() {
        let mut map: SharedMap<u32, u32> = (0..10_000).map(|n| (n, n)).collect();
        let before = map.clone();
        map.insert(5_000, 1);
        let shared = before.chunks.iter().zip(map.chunks.iter()).filter(|(a, b)| Arc::ptr_eq(&a.entries, &b.entries));
        assert_eq!(shared.count(), before.chunks.len() - 1);
        assert_eq!((before.get(&5_000), map.get(&5_000)), (Some(&5_000), Some(&1)));
    }

    #[test]
    fn an_empty_map_has_nothing_and_takes_nothing_out() {
        let mut map: SharedMap<u8, u8> = SharedMap::default();
        assert_eq!((map.get(&1), map.iter_from(|_| Ordering::Less).count()), (None, 0));
        assert_eq!(map.remove(&1), None);
        map.insert(1, 2);
        assert_eq!((map.remove(&1), map.len(), map.iter().count()), (Some(2), 0, 0));
    }
}
