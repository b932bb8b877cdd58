//! Which trigger answers a request: the payload of `request:...`, and a table of them.
//!
//! `request:PATH` answers `GET` and `POST` on exactly that path, byte for byte, as in InfluxDB 3. Two additions, which no path of
//! InfluxDB 3 could mean, since a request line has no spaces: `request:PATH/*` answers what is below the path too, and methods
//! may stand before it: `request:GET,PUT,DELETE PATH`, or `request:* PATH` for every method.
//!
//! A path that is a trigger's own goes before one that it is below, and the longest of those is taken. Looking an exact path up is one
//! look into a hash map; one below costs a look per segment.

use std::collections::HashMap;
use std::fmt;

/// Every method that a trigger may answer; `OPTIONS` is answered by the server (CORS).
pub const METHODS: [&str; 6] = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"];
/// What a path that names no methods answers.
const METHODS_DEFAULT: Methods = Methods(0b11);

/// A set of [`METHODS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Methods(u8);

impl Methods {
    fn parse(text: &str) -> Option<Methods> {
        if text == "*" {
            return Some(Methods((1 << METHODS.len()) - 1));
        }
        let bit = |name: &str| METHODS.iter().position(|method| *method == name).map(|at| 1_u8 << at);
        text.split(',').map(bit).try_fold(0, |all, bit| Some(all | bit?)).map(Methods)
    }

    /// Whether it is one of them.
    pub fn contain(self, method: &str) -> bool {
        METHODS.iter().position(|known| *known == method).is_some_and(|at| self.0 >> at & 1 == 1)
    }
}

/// As in the header `Allow`.
impl fmt::Display for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = METHODS.into_iter().filter(|method| self.contain(method)).collect();
        f.write_str(&names.join(", "))
    }
}

/// The payload of `request:...`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// What it answers.
    pub methods: Methods,
    /// Without the `/*`.
    pub path: String,
    /// What is below the path is meant too.
    pub below: bool,
}

impl Route {
    /// Takes the payload of a trigger's specification apart.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(payload: &str) -> Result<Route, String> {
        let (methods, path) = match payload.split_once(' ') {
            None => (METHODS_DEFAULT, payload),
            Some((methods, path)) => {
                let known = METHODS.join(", ");
                let parsed = Methods::parse(methods).ok_or_else(|| {
                    format!("'{methods}' before the path is no list of methods; there are {known}, and * for all")
                })?;
                (parsed, path.trim_start())
            }
        };
        let (path, below) = path.strip_suffix("/*").map_or((path, false), |path| (path, true));
        if path.is_empty() {
            return Err("the path is empty".to_owned());
        }
        if let Some(bad) = path.chars().find(|c| c.is_whitespace() || c.is_control() || matches!(c, '?' | '#')) {
            return Err(format!(
                "no request can have the path '{path}': it has {bad:?} in it; write it percent-encoded"
            ));
        }
        Ok(Route { methods, path: path.to_owned(), below })
    }
}

/// Who answers on each path. More than one only in a catalog of a version that did not refuse that: then the first one does.
type ByPath<T> = HashMap<Box<str>, Vec<(Methods, T)>, ahash::RandomState>;

/// Who answers what.
#[derive(Clone, Debug)]
pub struct Routes<T> {
    exact: ByPath<T>,
    below: ByPath<T>,
}

impl<T> Default for Routes<T> {
    fn default() -> Self {
        Routes { exact: HashMap::default(), below: HashMap::default() }
    }
}

/// What [`Routes::find`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a, 'p, T> {
    /// Who answers.
    Target {
        /// What was put in.
        target: &'a T,
        /// The route's path.
        route: &'p str,
        /// What stands below it, without the slash.
        tail: &'p str,
    },
    /// The path is known, and the method is none of these.
    OtherMethods(Methods),
    /// The path is not known.
    Nothing,
}

impl<T> Routes<T> {
    /// Adds a route; of several for one path the first one counts.
    pub fn add(&mut self, route: Route, target: T) {
        let map = if route.below { &mut self.below } else { &mut self.exact };
        map.entry(route.path.into()).or_default().push((route.methods, target));
    }

    /// Takes the route away of those that are meant.
    pub fn remove(&mut self, route: &Route, is_meant: impl Fn(&T) -> bool) {
        let map = if route.below { &mut self.below } else { &mut self.exact };
        let Some(targets) = map.get_mut(&*route.path) else { return };
        targets.retain(|(_, target)| !is_meant(target));
        if targets.is_empty() {
            map.remove(&*route.path);
        }
    }

    /// Those whose routes clash with this one.
    pub fn clashing(&self, route: &Route) -> impl Iterator<Item = &T> {
        let map = if route.below { &self.below } else { &self.exact };
        map.get(&*route.path).into_iter().flatten().map(|(_, target)| target)
    }

    /// Who answers `method` on `path`.
    pub fn find<'p>(&self, method: &str, path: &'p str) -> Found<'_, 'p, T> {
        let Some(((methods, target), route)) =
            self.exact.get(path).and_then(|found| Some((found.first()?, path))).or_else(|| self.above(path))
        else {
            return Found::Nothing;
        };
        if !methods.contain(method) {
            return Found::OtherMethods(*methods);
        }
        Found::Target { target, route, tail: path.get(route.len() + 1..).unwrap_or_default() }
    }

    fn above<'p>(&self, path: &'p str) -> Option<(&(Methods, T), &'p str)> {
        if self.below.is_empty() {
            return None;
        }
        let mut part = path;
        loop {
            if let Some(found) = self.below.get(part).and_then(|found| found.first()) {
                return Some((found, part));
            }
            part = &part[..part.rfind('/')?];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(payloads: &[&'static str]) -> Routes<&'static str> {
        let mut routes = Routes::default();
        for payload in payloads {
            routes.add(Route::parse(payload).expect(payload), *payload);
        }
        routes
    }

    fn find(routes: &Routes<&'static str>, method: &str, path: &str) -> String {
        match routes.find(method, path) {
            Found::Target { target, route, tail } => format!("{target} = {route} + {tail}"),
            Found::OtherMethods(methods) => format!("only {methods}"),
            Found::Nothing => "nothing".to_owned(),
        }
    }

    #[test]
    fn a_path_is_the_whole_rest_byte_for_byte() {
        let routes = table(&["foo", "foo/bar", "a%20b"]);
        assert_eq!(find(&routes, "GET", "foo"), "foo = foo + ");
        assert_eq!(find(&routes, "POST", "foo/bar"), "foo/bar = foo/bar + ");
        assert_eq!(find(&routes, "GET", "a%20b"), "a%20b = a%20b + ");
        for other in ["", "Foo", "foo/", "/foo", "foo/bar/x", "a b", "fo%6f"] {
            assert_eq!(find(&routes, "GET", other), "nothing", "{other}");
        }
        assert_eq!(find(&routes, "PUT", "foo"), "only GET, POST");
    }

    #[test]
    fn what_is_below_goes_to_the_longest_path_that_asked_for_it() {
        let routes = table(&["a/*", "a/b/*", "a/b", "c/*", "c"]);
        assert_eq!(find(&routes, "GET", "a"), "a/* = a + ");
        assert_eq!(find(&routes, "GET", "a/x/y"), "a/* = a + x/y");
        assert_eq!(find(&routes, "GET", "a/b"), "a/b = a/b + ");
        assert_eq!(find(&routes, "GET", "a/b/"), "a/b/* = a/b + ");
        assert_eq!(find(&routes, "GET", "a/b//z"), "a/b/* = a/b + /z");
        assert_eq!(find(&routes, "GET", "a/bc"), "a/* = a + bc");
        assert_eq!(find(&routes, "GET", "ab"), "nothing");
        assert_eq!(find(&routes, "GET", "c"), "c = c + ");
        assert_eq!(find(&routes, "GET", "c/d"), "c/* = c + d");
    }

    #[test]
    fn methods_may_stand_before_the_path() {
        let routes = table(&["PUT,DELETE,GET x/*", "* y"]);
        assert_eq!(find(&routes, "DELETE", "x/1"), "PUT,DELETE,GET x/* = x + 1");
        assert_eq!(find(&routes, "POST", "x"), "only GET, PUT, DELETE");
        for method in METHODS {
            assert_eq!(find(&routes, method, "y"), "* y = y + ");
        }
        assert_eq!(find(&routes, "TRACE", "y"), "only GET, POST, PUT, DELETE, PATCH, HEAD");
    }

    #[test]
    fn what_no_request_can_ask_for_is_refused() {
        for (payload, why) in [
            ("/*", "the path is empty"),
            ("GET ", "the path is empty"),
            ("get x", "'get' before the path is no list of methods"),
            ("GET,TRACE x", "'GET,TRACE' before the path is no list of methods"),
            ("GET a b", "no request can have the path 'a b': it has ' ' in it"),
            ("a?b", "no request can have the path 'a?b': it has '?' in it"),
        ] {
            let error = Route::parse(payload).unwrap_err();
            assert!(error.starts_with(why), "{error}");
        }
    }

    #[test]
    fn a_route_that_is_taken_away_leaves_its_path_to_the_next_one() {
        let mut routes = table(&["GET x", "PUT x", "x/*"]);
        assert_eq!(find(&routes, "PUT", "x"), "only GET");
        let remove = |routes: &mut Routes<&'static str>, path: &str| {
            routes.remove(&Route::parse(path).unwrap(), |target| *target == path);
        };
        remove(&mut routes, "POST x");
        remove(&mut routes, "y");
        assert_eq!(find(&routes, "PUT", "x"), "only GET", "those were not meant");
        remove(&mut routes, "GET x");
        assert_eq!(find(&routes, "PUT", "x"), "PUT x = x + ");
        remove(&mut routes, "PUT x");
        assert_eq!(find(&routes, "PUT", "x"), "only GET, POST", "what is below x has the path too");
        remove(&mut routes, "x/*");
        assert_eq!(find(&routes, "GET", "x"), "nothing");
        assert!(routes.exact.is_empty() && routes.below.is_empty());
    }

    #[test]
    fn two_routes_clash_if_they_mean_the_same_path_whatever_the_methods() {
        let clash = |a: &'static str, b: &str| table(&[a]).clashing(&Route::parse(b).unwrap()).count() == 1;
        assert!(clash("x", "x") && clash("GET x", "PUT x") && clash("x/*", "* x/*"));
        assert!(!clash("x", "x/*") && !clash("x", "X") && !clash("x", "x/y"));
    }
}
