//! Names in a request that nothing known bears, so that a person learns why an answer is empty.

use orb8_filter::Selector;
use orb8_proto::v1::condition::Field;
use orb8_proto::v1::{QueryFlowsRequest, Strings, Unmatched};

use crate::k8s::registry::{self, Registry, View};
use crate::k8s::status::Resource;
use crate::network::nearest::nearest;
use crate::network::view::with_labels;

/// Prefixes of container ids are this long at least, as in the filter.
const CONTAINER_ID: usize = 12;

/// Values for which names that come near are looked for; a person mistypes fewer.
const MAX_SUGGESTED: usize = 8;

/// The values that can match nothing now; none while Kubernetes is not known whole.
#[must_use]
pub fn of(request: &QueryFlowsRequest, registry: &Registry) -> Vec<Unmatched> {
    let view = registry.read();
    let mut found = Vec::new();
    let mut ask = |word: &str, values: &[String], knows: &dyn Fn(&str) -> bool| {
        for value in values.iter().filter(|value| !value.is_empty() && !knows(value)) {
            let (field, value) = (word.to_owned(), value.clone());
            found.push(Unmatched { field, value, suggestions: Vec::new() });
        }
    };
    let named = |field| move |view: &View<'_>, value: &str| view.knows(field, value);
    let (is_namespace, is_pod) = (named(registry::Field::Namespace), named(registry::Field::Pod));
    ask("namespace", &request.namespaces, &|value| is_namespace(&view, value));
    ask("pod", &request.pod_names, &|value| is_pod(&view, value));
    let conditions = request.filter.iter().flat_map(|filter| &filter.all);
    for condition in conditions.filter(|condition| !condition.negate) {
        let Some((word, list, field)) = condition.field.as_ref().and_then(named_by) else {
            continue;
        };
        match field {
            Named::Known(field) => ask(word, &list.values, &|value| view.knows(field, value)),
            Named::Selector => ask(word, &list.values, &|value| has_labels(&view, value)),
            Named::Container => ask(word, &list.values, &|value| has_container(&view, value)),
        }
    }
    drop(view);
    found.iter_mut().take(MAX_SUGGESTED).for_each(|name| suggest(name, registry));
    found
}

/// Looks for names that come near. Of labels and containers, nothing is offered.
fn suggest(name: &mut Unmatched, registry: &Registry) {
    let field = match name.field.as_str() {
        "namespace" => registry::Field::Namespace,
        "pod" => registry::Field::Pod,
        "workload" => registry::Field::Workload,
        "service" => registry::Field::Service,
        "node" => registry::Field::Node,
        _ => return,
    };
    let words = name.value.split('/').count();
    // Compared when changes of the registry do not wait any more.
    let names = registry.read().names(field, words);
    name.suggestions = nearest(&name.value, &names, field == registry::Field::Pod);
}

enum Named {
    Known(registry::Field),
    Selector,
    Container,
}

fn named_by(field: &Field) -> Option<(&'static str, &Strings, Named)> {
    Some(match field {
        Field::Namespace(list) => ("namespace", list, Named::Known(registry::Field::Namespace)),
        Field::Pod(list) => ("pod", list, Named::Known(registry::Field::Pod)),
        Field::Workload(list) => ("workload", list, Named::Known(registry::Field::Workload)),
        Field::Service(list) => ("service", list, Named::Known(registry::Field::Service)),
        Field::Node(list) => ("node", list, Named::Known(registry::Field::Node)),
        Field::Selector(list) => ("selector", list, Named::Selector),
        Field::Container(list) => ("container", list, Named::Container),
        _ => return None,
    })
}

/// Labels and containers are pods'; before these are listed nothing is known to be amiss.
fn is_whole(view: &View<'_>) -> bool {
    view.is_listed(Resource::Pods)
}

fn has_labels(view: &View<'_>, selector: &str) -> bool {
    let Ok(selector) = Selector::parse(selector) else { return true };
    !is_whole(view) || view.any_pod(|pod| with_labels(pod, |labels| selector.matches(labels)))
}

fn has_container(view: &View<'_>, wanted: &str) -> bool {
    !is_whole(view)
        || view.any_pod(|pod| {
            let by_id = wanted.len() >= CONTAINER_ID;
            let state = pod.state();
            state
                .containers
                .iter()
                .any(|one| *one.name == *wanted || (by_id && one.id.starts_with(wanted)))
        })
}
