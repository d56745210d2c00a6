#!/usr/bin/env bash
# The whole river in one script: read it first.
#
#   bash runs/speedrun.sh FOLDER          about five minutes on two cores, on synthetic heads made on the spot
#
# Every line that does something is a `neuroprior` command that you can type yourself. A step whose result is there is
# skipped, and a step that was interrupted goes on where it stopped: run the script again whenever you like.
# To make it bigger:  SUBJECTS=200 SPACING=1 RECIPE=fomo25 PRETRAIN_STEPS= bash runs/speedrun.sh FOLDER
set -euo pipefail

OUT=${1:?usage: speedrun.sh FOLDER}
SUBJECTS=${SUBJECTS:-30}             # synthetic subjects
SPACING=${SPACING:-3}                # mm, of the heads and of the store
RECIPE=${RECIPE:-tiny}               # see: neuroprior list recipes
PRETRAIN_STEPS=${PRETRAIN_STEPS-200} # empty: as many as the recipe says
STEPS=${STEPS:-60}                   # of each fine-tuning
NEUROPRIOR=${NEUROPRIOR:-neuroprior}

mkdir -p "$OUT"
cd "$OUT"

# step RESULT COMMAND...: run a neuroprior command unless its result is there.
step() {
  local result=$1; shift
  if [ -e "$result" ]; then echo "- done: $result"; return; fi
  echo; echo "\$ neuroprior $*"
  $NEUROPRIOR "$@"
}

# 1. Data. A family of heads with known truth, as a BIDS dataset. Your own BIDS folders would go to the next command as they are.
step heads/dataset_description.json synthesise --out heads --subjects "$SUBJECTS" --spacing "$SPACING" --contrasts T1w,T2w,FLAIR

# 2. Index. One row a scan: geometry, metadata, what is wrong with it, and a split by subject. Nothing is copied.
step index.parquet index heads --out index.parquet --split train=0.6,val=0.1,test=0.3

# 3. Prepare. Each session conformed to one grid: RAS+, one spacing, cropped to the head, normalised; invertible and chunked.
step store/complete.json prepare index.parquet --out store --spacing "$SPACING"

# 4. Pretrain without labels: two contrasts of a session share their anatomy and differ in the rest.
step runs/pretrained/complete.json pretrain store --recipe "$RECIPE" --out runs/pretrained ${PRETRAIN_STEPS:+--set training.steps=$PRETRAIN_STEPS}

# 5. Fine-tune with labels, from the pretrained model and, as the baseline that every claim needs, from scratch.
# 6. Predict the test subjects, who were never seen, in the native space of their scans.
# 7. Evaluate: every case, the set with intervals, and the trivial floor.
river() { # NAME START TASK TARGET [OPTION...]
  local name=$1 start=$2 task=$3 target=$4; shift 4
  step "runs/$name/complete.json" finetune store --from "$start" --task "$task" --target "$target" --recipe "$RECIPE" \
    --out "runs/$name" --set training.steps="$STEPS" --set training.validate_every="$STEPS" "$@"
  step "predictions/$name/predictions.tsv" predict "runs/$name" index.parquet --split test --out "predictions/$name"
  step "scores/$name.parquet" evaluate "predictions/$name" --reference index.parquet --out "scores/$name.parquet" --name "${name#*-}"
}
for start in runs/pretrained scratch; do
  river "lesion-$(basename $start)" $start segmentation lesion
  river "age-$(basename $start)" $start regression age --contrasts T1w --set training.batch=2
  river "health-$(basename $start)" $start classification health --set training.batch=2
done

# 8. Report: one page that needs no network.
echo; echo "\$ neuroprior report runs/* predictions/* scores/*.parquet --out report"
$NEUROPRIOR report runs/* predictions/* scores/*.parquet --out report --title "The river on synthetic heads"
echo
echo "Report: $PWD/report/report.html"
