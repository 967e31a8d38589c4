#!/bin/sh
# What Dockerfile and Singularity.def have in common: fills /opt, step by step.
#   install.sh packages     the pinned packages that the app needs, in a virtual environment
#   install.sh app          the app itself
#   install.sh resources    what is fetched: SFCN, its template, an atlas; OFFLINE=1 skips it
# TORCH: cpu; cuda, the build of the public package index; or another build, such as cu128.
# Where pip looks for packages is pip's own affair (PIP_EXTRA_INDEX_URL, pip.conf).
set -eu
umask 022

SOURCE=$(cd "$(dirname "$0")/.." && pwd)
APP=/opt/brainage

pip_install() {
    python3 -m pip --python "$APP/bin/python" install \
        --no-cache-dir --no-compile --disable-pip-version-check "$@"
}

# Where nothing can be written, nothing is compiled later: all that the app loads, a third of the
# modules that there are. By hash, since copies lose their dates. Those of the base image, too,
# which may have come without.
compile() {
    scratch=$(mktemp -d)
    HOME=$scratch TEMPLATEFLOW_HOME=$scratch PYTHONPYCACHEPREFIX=/opt/pycache \
        "$APP/bin/python" - <<'END'
import importlib, pkgutil, py_compile, sys
import bidsapp, models
from PIL import Image
names = [  # loaded late
    "bids", "contourpy", "encodings.unicode_escape", "encodings.utf_8_sig",
    "matplotlib.backends.backend_svg", "nilearn.datasets", "pandas.core.methods.to_dict",
    "pandas.core.reshape.reshape", "sqlalchemy.dialects.sqlite", "templateflow.api",
    "templateflow.conf.bids",
]
Image.preinit()  # kinds of pictures
for package in (bidsapp, models):
    inside = pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    names += [each.name for each in inside if not each.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
by_hash = py_compile.PycInvalidationMode.UNCHECKED_HASH
for module in list(sys.modules.values()):
    path = getattr(module, "__file__", None) or ""
    if path.startswith("/") and path.endswith(".py"):
        py_compile.compile(path, doraise=True, invalidation_mode=by_hash)
END
    rm -r "$scratch"
}

packages() {
    python3 -m venv --without-pip "$APP"
    "$APP/bin/python" - "$SOURCE/pyproject.toml" > /tmp/requirements.txt <<'END'
import sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
print(*project["dependencies"], *project["optional-dependencies"]["dask"], sep="\n")
END
    case "${TORCH:=cpu}" in
        # === takes no other build, which == would, where an index has one
        cuda) torch=$(sed -n 's/^torch==/torch===/p' "$SOURCE/constraints.txt") ;;
        *) torch=$(grep '^torch==' "$SOURCE/constraints.txt")+$TORCH ;;
    esac
    pip_install -c "$SOURCE/constraints.txt" -r /tmp/requirements.txt "$torch" || {
        echo "install.sh: if pip found no $torch: name PyTorch's index of such builds in" \
            "PIP_EXTRA_INDEX_URL, or take TORCH=cuda" >&2
        exit 1
    }
    rm /tmp/requirements.txt
    # What only a compiler or a test of torch would use: 80 MB.
    torch=$(echo "$APP"/lib/python3*/site-packages/torch)
    rm -rf "$torch/include" "$torch/test"
    find "$torch/bin" -type f ! -name torch_shm_manager -delete
    find "$APP/lib" -type d -name tests -path '*/site-packages/*' -prune -exec rm -rf {} +
}

app() {
    pip_install --no-deps "$SOURCE"
    compile
}

resources() {
    mkdir -p "$BRAINAGE_MODELS" "$TEMPLATEFLOW_HOME"
    if [ "${OFFLINE:-0}" = 1 ]; then
        # TemplateFlow would fill a folder that it finds empty, which cannot be written to later.
        echo "Bind another folder here for other templates." > "$TEMPLATEFLOW_HOME/README"
        echo "install.sh: OFFLINE=1, so there are the embedded models and the bundled template only"
        return
    fi
    "$APP/bin/python" -m models fetch sfcn
    "$APP/bin/python" - <<'END'
from templateflow import api
for template, about in (
    ("MNI152NLin6Asym", {"desc": None, "suffix": "T1w", "resolution": 1}),  # SFCN's
    ("MNI152NLin6Asym", {"desc": "brain", "suffix": "mask", "resolution": 1}),
    ("MNI152NLin2009cSym", {"atlas": "CerebrA", "suffix": "dseg", "resolution": 1}),
    ("MNI152NLin2009cSym", {"atlas": "CerebA", "suffix": "dseg", "extension": ".tsv"}),  # sic
):
    print(api.get(template, raise_empty=True, **{"extension": ".nii.gz", **about}))
END
    # Those that TemplateFlow's own history vouches for; of the others the sums are in the log.
    cd "$TEMPLATEFLOW_HOME"
    md5sum --check --strict "$SOURCE/container/templates.md5"
    find . -type f -size +0 -exec md5sum {} +
    chmod -R a+rX "$BRAINAGE_MODELS" "$TEMPLATEFLOW_HOME"
}

for step in "$@"; do "$step"; done
