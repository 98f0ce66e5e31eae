//! An entry of the table of translations ⇄ words in its place.

use crate::abi::{KEY_WORDS, REPLY_TRANSLATION, TRANSLATION_WORDS, TranslationLine, V4_KEY, V4_WORDS, Word};

/// Where in its line an entry's key is. What IPv4 needs is in the first of the line's two cache lines: two words of the key, and five of
/// the translation.
const KEY: [usize; KEY_WORDS] = [0, 1, 8, 9, 10];
const V4_KEY_WORDS: usize = 2;
/// Where its translation is.
const TRANSLATION: [usize; TRANSLATION_WORDS] = [2, 3, 4, 5, 6, 11, 12, 13];
const V4_TRANSLATION_WORDS: usize = 5;

impl TranslationLine {
    /// Asks for the cache lines that an entry of this key needs, without waiting for them.
    #[inline(always)]
    pub(super) fn fetch(&self, key: &[u64; KEY_WORDS]) {
        self.words[KEY[0]].load();
        if !is_v4(key[1]) {
            self.words[KEY[V4_KEY_WORDS]].load();
        }
    }

    /// Whether an entry's key is this one.
    #[inline(always)]
    pub(super) fn is(&self, key: &[u64; KEY_WORDS]) -> bool {
        let [a, b, c, d, e] = KEY.map(|at| &self.words[at]);
        (a.load() ^ key[0]) | (b.load() ^ key[1]) == 0
            && (is_v4(key[1]) || (c.load() ^ key[2]) | (d.load() ^ key[3]) | (e.load() ^ key[4]) == 0)
    }

    /// The words of the key.
    #[inline(always)]
    pub(super) fn key(&self) -> [u64; KEY_WORDS] {
        let [a, b, c, d, e] = KEY.map(|at| &self.words[at]);
        let flow = b.load();
        let [c, d, e] = if is_v4(flow) { V4_WORDS } else { [c.load(), d.load(), e.load()] };
        [a.load(), flow, c, d, e]
    }

    /// The words of the translation.
    #[inline(always)]
    pub(super) fn translation(&self) -> [u64; TRANSLATION_WORDS] {
        let [last, flow, first, rest, vlan, a, b, c] = TRANSLATION.map(|at| &self.words[at]);
        let v4 = is_v4(self.words[KEY[1]].load());
        let [a, b, c] = if v4 { V4_WORDS } else { [a.load(), b.load(), c.load()] };
        [last.load(), flow.load(), first.load(), rest.load(), vlan.load(), a, b, c]
    }

    /// Whether the translation is one of a backend's answers.
    #[inline(always)]
    pub(super) fn is_reply(&self) -> bool {
        self.words[TRANSLATION[1]].load() & REPLY_TRANSLATION != 0
    }

    /// The words of the translation's way back.
    #[inline(always)]
    pub(super) fn path(&self) -> [&Word; 3] {
        let [_, _, path @ .., _, _, _] = TRANSLATION;
        path.map(|at| &self.words[at])
    }

    /// Writes both.
    #[inline(always)]
    pub(super) fn write(&self, key: &[u64; KEY_WORDS], translation: &[u64; TRANSLATION_WORDS]) {
        let mut at = 0;
        while at < KEY_WORDS {
            if at < V4_KEY_WORDS || !is_v4(key[1]) {
                self.words[KEY[at]].store(key[at]);
            }
            at += 1;
        }
        let mut at = 0;
        while at < TRANSLATION_WORDS {
            if at < V4_TRANSLATION_WORDS || !is_v4(key[1]) {
                self.words[TRANSLATION[at]].store(translation[at]);
            }
            at += 1;
        }
    }
}

/// Whether a key is of IPv4, by its second word.
#[inline(always)]
const fn is_v4(flow: u64) -> bool {
    flow & V4_KEY != 0
}
