//! Columns whose names the form of an answer can say only once.
//!
//! A row of JSON, and a row that a plugin gets, is a map: of two columns `v` one would be lost. Readers of Parquet find
//! columns by their names. CSV and tables for people can show both.

use std::collections::HashSet;

use arrow::datatypes::{DataType, Field, Schema};

use super::QueryError;

/// Refuses a result that has a column's name twice, at the top or within a struct.
///
/// # Errors
/// Names the column and the remedy.
pub(crate) fn require_distinct(schema: &Schema) -> Result<(), QueryError> {
    match twice(schema.fields().iter().map(AsRef::as_ref)) {
        Some(name) => Err(QueryError::Planning(format!(
            "the result has two columns of the name '{name}', of which a row can hold only one: name one of them with AS, \
             as in SELECT a.{name}, b.{name} AS {name}_2, and list the columns instead of *; format csv and format pretty \
             can show both"
        ))),
        None => Ok(()),
    }
}

fn twice<'a>(fields: impl Iterator<Item = &'a Field> + Clone) -> Option<String> {
    let mut seen = HashSet::new();
    let same = fields.clone().find(|field| !seen.insert(field.name().as_str())).map(|field| field.name().clone());
    same.or_else(|| fields.clone().find_map(|field| within(field.data_type())))
}

fn within(kind: &DataType) -> Option<String> {
    match kind {
        DataType::Struct(fields) => twice(fields.iter().map(AsRef::as_ref)),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _) => within(item.data_type()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn column(name: &str, kind: DataType) -> Field {
        Field::new(name, kind, true)
    }

    #[test]
    fn a_name_may_be_there_once_at_each_place() {
        let pair =
            |left, right| DataType::Struct(vec![column(left, DataType::Int64), column(right, DataType::Int64)].into());
        let list = |item| DataType::List(Arc::new(column("item", item)));
        let cases = [
            (vec![column("v", DataType::Int64), column("w", DataType::Int64)], None),
            (vec![column("v", DataType::Int64), column("V", DataType::Int64)], None),
            (vec![column("v", DataType::Int64), column("v", DataType::Utf8)], Some("v")),
            (vec![column("v", pair("a", "b")), column("a", DataType::Int64)], None),
            (vec![column("v", pair("a", "a"))], Some("a")),
            (vec![column("v", list(pair("a", "a")))], Some("a")),
        ];
        for (fields, name) in cases {
            let answer = require_distinct(&Schema::new(fields.clone()));
            match name {
                None => assert_eq!(answer, Ok(()), "{fields:?}"),
                Some(name) => assert!(answer.unwrap_err().to_string().contains(&format!("'{name}'")), "{fields:?}"),
            }
        }
    }
}
