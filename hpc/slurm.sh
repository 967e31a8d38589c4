#!/usr/bin/env bash
#SBATCH --job-name=brainage
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=01:00:00
#SBATCH --requeue
#
# brainage as a SLURM array: one task for each participant that has a scan without a record.
#
#     hpc/slurm.sh IMAGE BIDS_DIR OUTPUT_DIR [options of brainage]
#
# IMAGE is a .sif file, or the command brainage of an environment. Say the same again after a
# failure: what is done is not submitted, and what was interrupted goes on. Variables:
#
#     AT_ONCE=100     tasks at a time
#     PER_TASK=1      participants a task: a task of many short scans loads the models only once
#     LABELS=FILE     only the participants in this file, one a line
#     SBATCH_ACCOUNT, SBATCH_PARTITION, SBATCH_TIMELIMIT, ...   as sbatch knows them
set -euo pipefail

usage="usage: $0 IMAGE BIDS_DIR OUTPUT_DIR [options of brainage]"

# brainage IMAGE BIDS_DIR OUTPUT_DIR [options]: the participant level, in a container where it is one
brainage() {
    local image=$1 bids=$2 out=$3
    shift 3
    if [[ $image != *.sif ]]; then
        "$image" "$bids" "$out" participant "$@"
        return
    fi
    local program scratch code=0
    program=$(command -v apptainer || command -v singularity)
    scratch=$(mktemp -d)
    "$program" run --cleanenv --containall --workdir "$scratch" \
        -B "$bids:/data:ro" -B "$out:/out" "$image" /data /out participant "$@" || code=$?
    rm -rf "$scratch"
    return "$code"
}

submit() {
    local image=$1 bids=$2 out=$3
    [[ $image == */* ]] && image=$(realpath "$image")
    bids=$(realpath "$bids")
    mkdir -p "$out/logs/slurm"
    out=$(realpath "$out")
    shift 3

    local scans list labels=()
    if [[ -n ${LABELS:-} ]]; then
        mapfile -t labels < "$LABELS"
        labels=(--participant-label "${labels[@]}")
    fi
    # This may be a node without the GPU that the tasks will have.
    scans=$(brainage "$image" "$bids" "$out" "$@" "${labels[@]}" --device auto --dry-run)
    list="$out/logs/slurm/$(date +%Y%m%d-%H%M%S)-$$.txt"
    awk '!/ \(has a record\)$/ { sub(/[_:].*/, ""); print }' <<< "$scans" | sort -u > "$list"
    local participants
    participants=$(wc -l < "$list")
    if ((participants == 0)); then
        rm "$list"
        echo "Every scan has its record: nothing to submit."
        return
    fi

    # The largest index that the cluster gives to an array is one less than its limit.
    local most per_task=${PER_TASK:-1}
    most=$(scontrol show config | awk '$1 == "MaxArraySize" { print $3 - 1 }')
    ((per_task * most >= participants)) || per_task=$(((participants + most - 1) / most))
    local tasks=$(((participants + per_task - 1) / per_task))
    echo "$participants participants in $tasks tasks; their list is $list"
    sbatch --array="1-$tasks%${AT_ONCE:-100}" --output="$out/logs/slurm/%A_%a.txt" \
        --open-mode=append "$0" --task "$list" "$per_task" "$image" "$bids" "$out" "$@"
}

task() {
    local list=$1 per_task=$2 labels
    shift 2
    local first=$(((SLURM_ARRAY_TASK_ID - 1) * per_task + 1))
    mapfile -t labels < <(sed -n "$first,$((first + per_task - 1))p" "$list")
    echo "$(date '+%F %T') ${HOSTNAME:-}: ${labels[*]}"
    brainage "$@" --nprocs "${SLURM_CPUS_PER_TASK:-1}" --participant-label "${labels[@]}"
}

if [[ ${1:-} == --task ]]; then
    shift
    task "$@"
elif (($# < 3)); then
    echo "$usage" >&2
    exit 2
elif [[ $* == *--participant[-_]label* ]]; then
    echo "$0: every task gets its own --participant-label; name a file of labels in LABELS" >&2
    exit 2
else
    submit "$@"
fi
