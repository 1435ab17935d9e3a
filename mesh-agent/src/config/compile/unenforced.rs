//! Security objects that are not enforced: each is an error, and the pods that one is meant to protect
//! are held back: a pod that is not in the mesh yet must not be moved to where nothing protects it.

use super::view::View;
use crate::config::diagnostic::Diagnostic;
use crate::config::parse::NOT_ENFORCED;
use crate::model::{Snapshot, Unenforced};

/// Reports the objects, and notes for which pods they are meant.
pub(super) fn compile(view: &View<'_>, snapshot: &mut Snapshot, diagnostics: &mut Vec<Diagnostic>) {
    for entry in &view.unenforced {
        let mut report = entry.report();
        report.error("spec", NOT_ENFORCED);
        diagnostics.extend(report.into_diagnostics());
        let (key, facts) = (&entry.object.key, entry.facts);
        if facts.gateways_only {
            continue;
        }
        let is_root = key.namespace == snapshot.mesh.root_namespace;
        snapshot.unenforced.push(Unenforced {
            object: key.to_ref(),
            namespace: (!is_root).then(|| key.namespace.clone()),
            selector: facts.selector.clone(),
        });
    }
}
