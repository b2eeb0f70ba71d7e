//! JSON schemas out of a number: each as different from the others as what the server says it enforces allows, and each with an answer
//! that is not long.

use serde_json::{Map, Value, json};

/// The schema of a number. Every other one describes an object, as a tool's parameters have to be.
pub(crate) fn schema(number: u64) -> Value {
    let mut maker = Maker { draw: Draw(number), definitions: Map::new() };
    let mut schema = if number.is_multiple_of(2) { maker.object(3) } else { maker.any(3) };
    if !maker.definitions.is_empty() {
        schema["$defs"] = maker.definitions.into();
    }
    schema
}

/// The same schema with something in it that cannot be enforced, and the keyword that says so.
pub(crate) fn unenforceable(number: u64) -> (Value, &'static str) {
    let mut schema = schema(number);
    let mut draw = Draw(!number);
    let (keyword, value) = draw.one_of([
        ("not", json!({"type": "null"})),
        ("if", json!({"type": "string"})),
        ("uniqueItems", json!(true)),
        ("contains", json!({"type": "string"})),
        ("propertyNames", json!({"maxLength": 3})),
        ("dependentRequired", json!({"a": ["b"]})),
        ("unevaluatedProperties", json!(false)),
        ("format", json!("idn-email")),
        ("pattern", json!("^(?=x)")),
        ("$ref", json!("https://example.com/schema.json")),
        ("$dynamicRef", json!("#node")),
    ]);
    let mut places = Vec::new();
    subschemas(&schema, String::new(), &mut places);
    let place = draw.one_of(places);
    let there = schema.pointer_mut(&place).unwrap().as_object_mut().unwrap();
    there.insert(keyword.to_owned(), value);
    (schema, keyword)
}

/// Pointers to the schemas in a schema.
fn subschemas(schema: &Value, place: String, found: &mut Vec<String>) {
    let Value::Object(map) = schema else { return };
    for (keyword, value) in map {
        let here = format!("{place}/{keyword}");
        match (keyword.as_str(), value) {
            ("properties" | "patternProperties" | "$defs", Value::Object(named)) => {
                for (name, schema) in named {
                    let name = name.replace('~', "~0").replace('/', "~1");
                    subschemas(schema, format!("{here}/{name}"), found);
                }
            }
            ("anyOf" | "oneOf" | "allOf" | "prefixItems", Value::Array(items)) => {
                for (at, schema) in items.iter().enumerate() {
                    subschemas(schema, format!("{here}/{at}"), found);
                }
            }
            ("items" | "additionalProperties", schema) => subschemas(schema, here, found),
            _ => {}
        }
    }
    found.push(place);
}

const NAMES: [&str; 12] =
    ["name", "id", "kind", "size", "at", "first name", "größe", "a\"b", "a/b", "tags", "next", "x-y"];

struct Maker {
    draw: Draw,
    definitions: Map<String, Value>,
}

impl Maker {
    fn any(&mut self, depth: u32) -> Value {
        if depth == 0 {
            return self.leaf();
        }
        match self.draw.below(12) {
            0..=2 => self.object(depth),
            3..=4 => self.array(depth),
            5 => self.tuple(depth),
            6 => json!({"anyOf": self.several(2..4, depth - 1)}),
            7 => self.tagged(depth),
            8 => self.recursive(depth),
            9 => self.both(depth),
            _ => self.leaf(),
        }
    }

    fn leaf(&mut self) -> Value {
        match self.draw.below(12) {
            0 => json!({"enum": self.values()}),
            1 => json!({"const": self.values()[0]}),
            2 => json!({"type": "boolean"}),
            3 => json!({"type": "null", "description": "nothing"}),
            4 => self.string(),
            5 => json!({"type": "string", "pattern": self.pattern()}),
            6 => match self.draw.one_of(FORMATS) {
                // Which can be as long as one likes.
                "uri" => json!({"type": "string", "format": "uri", "maxLength": 50}),
                format => json!({"type": "string", "format": format}),
            },
            7 | 8 => self.number("integer"),
            9 => self.number("number"),
            10 => {
                let mut schema = self.string();
                schema["type"] = json!(["string", "null"]);
                schema
            }
            _ => json!({"type": ["integer", "boolean"], "minimum": 0, "maximum": 99}),
        }
    }

    fn values(&mut self) -> Vec<Value> {
        let values = [
            json!("red"),
            json!("dark red"),
            json!("größe \"x\"\n"),
            json!(""),
            json!(17),
            json!(-2.5),
            json!(true),
            json!(null),
            json!({"a": [1, "x"]}),
            json!([]),
            json!("日本"),
            json!(1_000_000),
        ];
        let count = 1 + self.draw.below(5) as usize;
        let start = self.draw.below(values.len() as u64) as usize;
        values.iter().cycle().skip(start).take(count).cloned().collect()
    }

    fn string(&mut self) -> Value {
        let (least, more) = (self.draw.below(4), self.draw.below(10));
        let mut schema = json!({"type": "string", "maxLength": least + more});
        if least > 0 {
            schema["minLength"] = least.into();
        }
        schema
    }

    /// Pieces one after the other, as a whole or as a part of a short string.
    fn pattern(&mut self) -> String {
        let mut pattern = String::from("^");
        for _ in 0..=self.draw.below(3) {
            let piece = self.draw.one_of([
                "[a-f]",
                "\\d",
                "\\w",
                "[^a-z\"]",
                ".",
                "\\s",
                "(?:ab|cd)",
                "é",
                "[A-Z0-9_-]",
                "x",
                "\\S",
            ]);
            let times = self.draw.one_of(["", "?", "{1,3}", "{2}", "{0,4}", "{3,5}"]);
            pattern += &format!("{piece}{times}");
        }
        pattern + "$"
    }

    fn number(&mut self, kind: &str) -> Value {
        let mut schema = json!({"type": kind});
        let least = self.draw.below(2_000) as i64 - 1_000;
        let most = least + 16 + self.draw.below(5_000) as i64;
        let (least, most) = if kind == "number" && self.draw.chance(2) {
            (json!(least as f64 / 8.0), json!(most as f64 / 8.0))
        } else {
            (json!(least), json!(most))
        };
        // Without an end, or a step for fractions, the small model may find none.
        let wide = self.draw.chance(30);
        if !wide || self.draw.chance(2) {
            schema[self.draw.one_of(["minimum", "exclusiveMinimum"])] = least;
        }
        if !wide {
            schema[self.draw.one_of(["maximum", "exclusiveMaximum"])] = most;
        }
        // Powers of two, so that whoever checks them with floating point is right; and in ranges that have some.
        let any_fraction = kind == "number" && self.draw.chance(6);
        let stepped = kind == "number" || self.draw.chance(3);
        if !wide && stepped && !any_fraction {
            schema["multipleOf"] = self.draw.one_of([json!(1), json!(0.5), json!(0.25)]);
        } else if wide && stepped {
            schema["multipleOf"] = self.draw.one_of([json!(5), json!(10), json!(3), json!(64)]);
        }
        schema
    }

    fn several(&mut self, count: std::ops::Range<u64>, depth: u32) -> Vec<Value> {
        let count = count.start + self.draw.below(count.end - count.start);
        (0..count).map(|_| self.any(depth)).collect()
    }

    fn object(&mut self, depth: u32) -> Value {
        if self.draw.chance(8) {
            return self.dictionary(depth);
        }
        let count = self.draw.below(5) as usize;
        let start = self.draw.below(NAMES.len() as u64) as usize;
        let names: Vec<_> = NAMES.iter().cycle().skip(start).take(count).copied().collect();
        let properties: Map<_, _> = names.iter().map(|name| ((*name).to_owned(), self.any(depth - 1))).collect();
        let required: Vec<_> = names.into_iter().filter(|_| !self.draw.chance(3)).collect();
        let mut schema = json!({"type": "object", "properties": properties, "required": required});
        // In an open one the small model seldom finds an end.
        if !self.draw.chance(60) {
            schema["additionalProperties"] = false.into();
        }
        schema
    }

    fn dictionary(&mut self, depth: u32) -> Value {
        let mut schema = json!({"type": "object", "maxProperties": 1 + self.draw.below(3)});
        if self.draw.chance(2) {
            schema["minProperties"] = 1.into();
        }
        if self.draw.chance(8) {
            schema["additionalProperties"] = self.any(depth - 1);
        } else {
            schema["patternProperties"] = json!({"^[ab]$": self.any(depth - 1), "^x-\\d{1,3}$": self.leaf()});
            schema["additionalProperties"] = false.into();
        }
        schema
    }

    fn array(&mut self, depth: u32) -> Value {
        let (least, more) = (self.draw.below(3), self.draw.below(3));
        let mut schema = json!({"type": "array", "items": self.any(depth - 1), "maxItems": least + more});
        if least > 0 {
            schema["minItems"] = least.into();
        }
        schema
    }

    fn tuple(&mut self, depth: u32) -> Value {
        let first = self.several(1..3, depth - 1);
        let rest = if self.draw.chance(2) { json!(false) } else { self.leaf() };
        json!({"type": "array", "prefixItems": first, "items": rest, "minItems": 1, "maxItems": 4})
    }

    /// One of several objects that a property tells apart.
    fn tagged(&mut self, depth: u32) -> Value {
        let kinds = ["circle", "square", "line"];
        let alternatives: Vec<_> = kinds.iter().take(2 + self.draw.below(2) as usize).collect();
        let alternatives = alternatives.into_iter().map(|kind| {
            json!({"type": "object", "properties": {"kind": {"const": kind}, "size": self.any(depth - 1)},
                "required": ["kind"], "additionalProperties": false})
        });
        let alternatives: Vec<_> = alternatives.collect();
        let mut schema = json!({});
        schema[self.draw.one_of(["oneOf", "anyOf"])] = alternatives.into();
        schema
    }

    /// A list, by a definition that refers to itself: once at most, for a tree may grow faster than the small model ends its branches.
    fn recursive(&mut self, depth: u32) -> Value {
        let name = format!("node{}", self.definitions.len());
        let this = json!({"$ref": format!("#/$defs/{name}")});
        // It has its name before another in it is made.
        self.definitions.insert(name.clone(), true.into());
        let value = self.any((depth - 1).min(1));
        let (further, required) = if self.draw.chance(2) {
            (("next", json!({"anyOf": [{"type": "null"}, this]})), json!(["value", "next"]))
        } else {
            (("children", json!({"type": "array", "items": this, "maxItems": 1})), json!(["value"]))
        };
        let properties = json!({"value": value, further.0: further.1});
        let node =
            json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false});
        self.definitions.insert(name, node);
        this
    }

    /// Two schemas of one value.
    fn both(&mut self, depth: u32) -> Value {
        if self.draw.chance(2) {
            return json!({"allOf": [{"type": "string", "pattern": self.pattern()}, {"minLength": 1, "maxLength": 20}]});
        }
        let (one, other) = (self.any(depth - 1), self.any(depth - 1));
        json!({"allOf": [
            {"type": "object", "properties": {"one": one}, "required": ["one"]},
            {"properties": {"one": true, "other": other}, "required": ["other"], "additionalProperties": false},
        ]})
    }
}

const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// `SplitMix64`.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, count: u64) -> u64 {
        self.next() % count
    }

    /// True once in so many times.
    fn chance(&mut self, once_in: u64) -> bool {
        self.below(once_in) == 0
    }

    fn one_of<T>(&mut self, items: impl IntoIterator<Item = T>) -> T {
        let mut items: Vec<T> = items.into_iter().collect();
        let at = self.below(items.len() as u64) as usize;
        items.swap_remove(at)
    }
}
