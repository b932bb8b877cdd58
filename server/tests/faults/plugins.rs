//! Plugins: whose code runs, updates as a whole, output, changes of triggers while a run is under way.
