//! `--fields`: picks values out of records by dotted paths such as `tcp.state`.

use serde_json::{Map, Value};

use crate::error::CliError;

/// The value at a path; null where there is none.
#[must_use]
pub fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('.').try_fold(value, |value, key| value.get(key)).unwrap_or(&Value::Null)
}

/// An object with only the given paths, nested as they were. Where an object on the way is null,
/// null stays in its place.
#[must_use]
pub fn project(value: &Value, paths: &[String]) -> Value {
    let mut picked = Value::Object(Map::new());
    for path in paths {
        copy(value, &mut picked, path);
    }
    picked
}

fn copy(from: &Value, to: &mut Value, path: &str) {
    let Value::Object(to) = to else { return };
    let (key, rest) = match path.split_once('.') {
        Some((key, rest)) => (key, Some(rest)),
        None => (path, None),
    };
    let value = from.get(key).unwrap_or(&Value::Null);
    match rest {
        Some(rest) if value.is_object() => {
            let inner = to.entry(key).or_insert_with(|| Value::Object(Map::new()));
            copy(value, inner, rest);
        }
        _ => {
            to.insert(key.to_owned(), value.clone());
        }
    }
}

/// The paths of all single values and lists of an object, in its order.
#[must_use]
pub fn paths(value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    collect(value, "", &mut found);
    found
}

fn collect(value: &Value, path: &str, found: &mut Vec<String>) {
    let Value::Object(object) = value else {
        found.push(path.to_owned());
        return;
    };
    for (key, value) in object {
        let dot = if path.is_empty() { "" } else { "." };
        collect(value, &format!("{path}{dot}{key}"), found);
    }
}

/// Checks that each field is a leaf of `leaves`, an object that holds some, or one of `extra`.
/// Of `in_tables`, which other formats do not have, it says so.
///
/// # Errors
/// A usage error that names the field and those that there are.
pub fn check(
    fields: &[String],
    leaves: &[&str],
    extra: &[&str],
    in_tables: &[&str],
) -> Result<(), CliError> {
    let known = |field: &str| {
        let part_of = |leaf: &&str| {
            leaf.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        extra.contains(&field) || leaves.iter().any(part_of)
    };
    let Some(field) = fields.iter().find(|field| !known(field)) else { return Ok(()) };
    let problem = if in_tables.contains(&field.as_str()) {
        format!("field {field:?} of --fields exists in tables only")
    } else {
        format!("unknown field {field:?} in --fields")
    };
    let all = leaves.iter().chain(extra).copied().collect::<Vec<_>>().join(" ");
    Err(CliError::Usage(format!("{problem}, use some of: {all}")))
}
