"""Every metric that a run writes into metrics.jsonl: name, unit, what it means, what is normal, what to do if not.

Data alone, for the page and whoever else lists metrics; what is normal are rules of thumb. Names in braces stand for
one part each: {reward} for a reward's name, {benchmark} for a benchmark's, {k} for a number, {more} for what a reward
of your own reports. A new metric of a run needs an entry here; tests/view/test_glossary.py finds those that lack one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Metric:
    """advice: what to do where it is not normal; "" where there is nothing to do."""

    name: str
    unit: str
    meaning: str
    normal: str
    advice: str = ""

    @property
    def pattern(self) -> re.Pattern[str]:
        """Of the names in metrics.jsonl that it describes."""
        parts = re.split(r"(\{\w+\})", self.name)
        return re.compile("".join(
            re.escape(part) if not part.startswith("{") else _PLACES[part] for part in parts))


_PLACES = {"{reward}": r"[^/]+", "{benchmark}": r".+", "{k}": r"[0-9]+", "{more}": r".+"}
SHARE, NATS, TOKENS, SECONDS = "share, 0 to 1", "nats", "tokens", "seconds"

METRICS: tuple[Metric, ...] = (
    # What is raised
    Metric("reward", "the rewards' own", "Mean weighted reward over all completions that the step sampled, anchors "
           "apart.",
           "Rises, quickly at first. It is noisy from step to step: smooth it.",
           "Flat: see refused/equal_rewards, optim/grad_norm, optim.lr. Rising while held-out accuracy falls: the "
           "policy "
           "games the reward."),
    Metric("accuracy", SHARE, "Right completions among those sampled, where the reward accuracy sees gold answers.",
           "Rises with reward."),
    Metric("reward/{reward}", "the reward's own", "Mean of one reward, before its weight.",
           "Each one that has a weight rises, or stays at its best value.",
           "One falls while the sum rises: its weight is too small beside the others'."),
    Metric("normalised_entropy", SHARE, "Semantic entropy of a group's answers over ln G, the mean over groups: 0 all "
           "completions agree, 1 all differ.", "Falls as the policy becomes sure. 0.2 to 0.8 at the beginning.",
           "Near 0 within a few steps, without held-out accuracy rising: collapse; lower optim.lr, set selection.low."),
    Metric("reward_since_evaluation", "the rewards' own", "Mean of the step rewards since the evaluation before.",
           "Rises together with held_out/accuracy.", "Rises alone: the policy games the reward."),
    # Held-out questions
    Metric("held_out/accuracy", SHARE, "avg@k on the held-out questions.", "Rises, then levels off.",
           "Falls while reward rises: take checkpoints/best, change reward or selection.low."),
    Metric("held_out/low", SHARE, "Lower end of the 95% interval of held_out/accuracy, over questions.",
           "Within some points of it.", "A wide interval: more evaluation.num_questions."),
    Metric("held_out/high", SHARE, "Upper end of the 95% interval of held_out/accuracy.", "Within some points of it."),
    Metric("held_out/samples", "completions", "Completions sampled of each held-out question.",
           "evaluation.samples before and after the run, samples_during between."),
    Metric("held_out/loss", NATS + " per completion token", "Cross-entropy of held-out solutions, of a warm-up.",
           "Falls, then levels off.", "Rises while the training loss falls: it learns the solutions by heart; stop "
           "earlier."),
    Metric("held_out/semantic_entropy", NATS, "Mean entropy over the answers of a held-out question.", "Falls.",
           "0 with low accuracy: sure of wrong answers."),
    Metric("held_out/unparsable_share", SHARE, "Held-out completions without an answer.", "Near 0, or falls to it.",
           "High: prompt.template does not ask for the form, or answers are cut (held_out/truncated_share)."),
    Metric("held_out/truncated_share", SHARE, "Held-out completions cut at sampling.max_completion_tokens.", "Below "
           "0.1.",
           "High: a larger limit, or a penalty on length."),
    Metric("held_out/completion_length", TOKENS, "Mean tokens of a held-out completion.", "Drifts slowly.",
           "Grows without accuracy growing: the policy rambles. Shrinks to a few: it stopped reasoning."),
    Metric("held_out/length_right", TOKENS, "Mean tokens of right held-out completions.", "Close to length_wrong or "
           "below."),
    Metric("held_out/length_wrong", TOKENS, "Mean tokens of wrong held-out completions.",
           "Often above length_right: the harder questions.", "Far above, near the limit: wrong answers are cut ones."),
    Metric("held_out/majority_right", SHARE, "Held-out questions whose one most frequent answer is right.",
           "Above accuracy; without labels about what training can reach.",
           "Falls: the policy agrees on wrong answers."),
    Metric("held_out/accuracy_where_majority_was_right", SHARE, "Accuracy on the questions whose majority was right "
           "before training.", "Rises towards 1."),
    Metric("held_out/accuracy_where_majority_was_wrong", SHARE, "Accuracy on the questions whose majority was wrong, a "
           "tie or missing before training.", "Without labels it hardly rises, or falls.",
           "What falls here is the price of agreement; gold answers or anchors help."),
    Metric("held_out/majority_lost", SHARE, "Held-out questions whose majority was right before training and is not "
           "now.",
           "Near 0.", "Grows: lower optim.lr, a KL penalty."),
    Metric("held_out/majority_gained", SHARE, "Held-out questions whose majority is right now and was not before.",
           "Above majority_lost."),
    Metric("evaluate_s", SECONDS, "Time of an evaluation.", "Small beside the steps between two.",
           "Fewer evaluation.samples_during, a larger evaluation.every."),
    Metric("benchmark/{benchmark}/avg@{k}", SHARE, "Mean accuracy over k samples of each question.", "Rises."),
    Metric("benchmark/{benchmark}/pass@{k}", SHARE, "Questions with a right one among k samples.",
           "Steady, or falls a little while avg rises.", "Falls quickly: diversity is lost."),
    Metric("benchmark/{benchmark}/maj@{k}", SHARE, "Questions whose most frequent answer among k samples is right.",
           "Above avg@k; avg comes closer."),
    *(Metric(f"benchmark/{{benchmark}}/{kind}@{{k}}/{end}", SHARE, f"The {words} end of the 95% interval over "
           f"questions.",
             "Within some points; wide for few questions.")
      for kind in ("avg", "pass", "maj") for end, words in (("low", "lower"), ("high", "upper"))),
    Metric("benchmark/{benchmark}/semantic_entropy", NATS, "Mean entropy over a question's answers.", "Falls."),
    Metric("benchmark/{benchmark}/unparsable_share", SHARE, "Completions without an answer.", "Near 0.",
           "High: the benchmark wants another form of answer than the run's prompt asks for."),
    Metric("benchmark/{benchmark}/truncated_share", SHARE, "Completions cut at the limit.", "Below 0.1.",
           "A larger max_tokens of the benchmark."),
    Metric("benchmark/{benchmark}/timed_out_share", SHARE, "Verdicts not reached within the grader's deadline: counted "
           "as wrong.", "0."),
    Metric("benchmark/{benchmark}/completion_length", TOKENS, "Mean tokens of a completion.", "Drifts slowly."),
    Metric("benchmark/{benchmark}/evaluate_s", SECONDS, "Time of this evaluation.", "Small beside the steps between "
           "two."),
    # Groups
    Metric("refused/too_low", SHARE, "Groups that did not train because their entropy is below selection.low: they "
           "agree.",
           "Grows as the policy learns.", "Near 1: nothing is left to learn from these questions; harder ones."),
    Metric("refused/too_high", SHARE, "Groups refused because their entropy is above selection.high: no agreement.",
           "Falls.", "Stays high: the questions are too hard, or answers are not read."),
    Metric("refused/equal_rewards", SHARE, "Groups whose completions all have the same reward: no advantage, no "
           "gradient.",
           "Below 0.5 at first, grows as questions are learnt.",
           "Near 1 at first: questions too easy or too hard, or a reward that tells nothing apart; larger group_size."),
    Metric("refused/skipped", SHARE, "Groups that a reward could not judge (its service did not answer).", "0.",
           "Look after the judge's service, its time-outs and its log."),
    Metric("groups/sampled", "groups", "Groups sampled in the step.", "sampling.questions_per_step; more with "
           "refilling."),
    Metric("groups/trained", "groups", "Groups that the step trained on.", "Falls as groups become unanimous.",
           "Near 0 for long: the run only costs; stop it, or give harder questions."),
    Metric("groups/refills", "rounds", "Further rounds of sampling to replace refused groups.", "0 to 2.",
           "At its limit: bounds too narrow."),
    Metric("groups/surplus", "groups", "Groups left over for the next step.", "Less than a batch."),
    Metric("groups/without_consensus", SHARE, "Trained groups whose largest cluster has fewer than "
           "selection.min_votes.",
           "Falls."),
    Metric("anchors/reward", "the reward's own", "Mean reward of the labelled questions that are mixed in.", "Rises.",
           "Falls while reward rises: the label-free part is gamed."),
    Metric("anchors/trained", "groups", "Anchors that the step trained on.", "Falls as they are learnt."),
    Metric("flips/weight", "factor, 0 to 1", "Mean weight of the batch's groups by flips of their majority answer.",
           "Near 1.", "Low: majorities change at each visit; a lower optim.lr."),
    # Signs of collapse
    Metric("collapse/majority_answer_share", SHARE, "Of the step's questions, those with the most frequent majority "
           "answer.",
           "Small: different questions have different answers.",
           "Near 1: one answer for everything. Stop; best checkpoint, lower optim.lr, selection.low."),
    Metric("collapse/unanimous_share", SHARE, "Groups whose completions all give one answer.", "Grows with learning.",
           "Near 1 while held-out accuracy is low: collapse."),
    Metric("collapse/majority_flip_share", SHARE, "Of questions seen before, those whose majority answer changed.",
           "Below 0.2, falling."),
    Metric("collapse/num_distinct_answers", "answers", "Different answers over all completions.", "Falls slowly.",
           "Falls to a few: collapse."),
    Metric("collapse/num_questions", "questions", "Different questions of the step.", "sampling.questions_per_step."),
    Metric("collapse/completion_length", TOKENS, "Mean tokens of a completion.", "Drifts slowly.",
           "Falls to a few: bare answers. Runs to the limit: rambling, or no end is sampled."),
    Metric("collapse/no_reasoning_share", SHARE, "Of the answered completions, those that begin with their answer.",
           "Steady or falling.", "Rises to 1: reasoning is lost; another reward, a format reward."),
    Metric("collapse/unparsable_share", SHARE, "Completions without an answer.", "Near 0, or falls to it.",
           "High: the prompt does not ask for the form, or completions are cut."),
    Metric("collapse/truncated_share", SHARE, "Completions cut at sampling.max_completion_tokens.", "Below 0.1.",
           "High: a larger limit, or loss.mask_truncated."),
    Metric("reasoning/steps", "lines", "Lines with text before the answer, the mean over answered completions.",
           "Steady or growing.", "Falls to 0: bare answers."),
    Metric("reasoning/reconsidering_share", SHARE, "Completions with a word such as wait or let me check (English).",
           "0 for small models; grows in long R1-like runs."),
    # What rewards report
    Metric("reward/group/unparsable_share", SHARE, "Completions without an answer, of all rewards' reading.", "Near "
           "0."),
    Metric("reward/group/unscored_share", SHARE, "Completions for which some reward has no score.", "0.",
           "The reward returns None, or its judge fails."),
    Metric("reward/group/skipped", SHARE, "Groups that a reward could not judge.", "0."),
    Metric("reward/group/num_clusters", "clusters", "Clusters of equivalent answers in a group.", "Falls from up to "
           "G to 1."),
    Metric("reward/{reward}/num_clusters", "clusters", "Clusters of answers that this reward found in a group.",
           "Falls."),
    Metric("reward/{reward}/entropy", NATS, "Semantic entropy that this reward found, 0 to ln G.", "Falls."),
    Metric("reward/{reward}/normalised_entropy", SHARE, "Its entropy over ln G.", "Falls."),
    Metric("reward/{reward}/unparsable_share", SHARE, "Completions in which it found no answer.", "Near 0."),
    Metric("reward/{reward}/unanswered_share", SHARE, "Completions without a place for the answer.", "Near 0."),
    Metric("reward/{reward}/non_transitive", "answers per group", "Answers equal to two clusters that differ from each "
           "other (5 beside 5 cm and 5 kg).", "0.", "Often: ask for one form of answer in the prompt."),
    Metric("reward/{reward}/non_transitive_share", SHARE, "Linked triples of answers that a judge does not hold all "
           "equal.",
           "Below 0.1.", "A stronger judge, or a clearer question to it."),
    Metric("reward/{reward}/timed_out", "comparisons per group", "Comparisons not decided in time: counted as not "
           "equal.",
           "0."),
    Metric("reward/{reward}/timed_out_share", SHARE, "Verdicts not reached in time: counted as wrong.", "0.",
           "Look at the answers: towers of powers and endless sums hang algebra."),
    Metric("reward/{reward}/failed_share", SHARE, "Calls of the judge or scorer without a result.", "0.",
           "Its service's log; its time-out."),
    Metric("reward/{reward}/unclear_share", SHARE, "Replies of the judge that are no verdict.", "0.",
           "A judge that follows the form, or another prompt to it."),
    Metric("reward/{reward}/asymmetric_share", SHARE, "Pairs that the judge holds equal one way round only.", "Below "
           "0.1."),
    Metric("reward/{reward}/num_pairs", "pairs per group", "Ordered pairs of answers that the judge was asked about.",
           "At most G (G - 1)."),
    Metric("reward/{reward}/copied_question_share", SHARE, "Answers that hold the whole question.", "Near 0.",
           "Grows: set the reward's refuse_copied_question."),
    Metric("reward/{reward}/long_answer_share", SHARE, "Answers longer than the reward's max_answer_length.", "Near "
           "0."),
    Metric("reward/{reward}/penalised_share", SHARE, "Completions longer than the free length.", "Falls."),
    Metric("reward/{reward}/no_letter_share", SHARE, "Answers that name no option.", "Near 0.",
           "The prompt does not ask for a letter."),
    Metric("reward/{reward}/tie", SHARE, "Groups without one largest cluster.", "Falls.",
           "High: a larger group_size."),
    Metric("reward/{reward}/vote_tie", SHARE, "Questions on which the votes of the average policy tie.", "Falls."),
    Metric("reward/{reward}/vote_share", SHARE, "Of the votes, those for the winner.", "Rises."),
    Metric("reward/{reward}/without_reasoning", "probability", "Of the gold answer without the reasoning before it.",
           "Low, steady.", "Rises: the answer is learnt by heart."),
    *(Metric(f"reward/{{reward}}/extracted_by/{rule}", SHARE, f"Completions whose answer {words}.", normal) for
           rule, words, normal in (
        ("boxed", "stands in \\boxed{}", "Near 1 where the prompt asks for a box."),
        ("hash", "stands behind ####", "Near 1 where the prompt asks for it, else 0."),
        ("answer_tag", "stands in <answer>", "Near 1 where the prompt asks for it, else 0."),
        ("phrase", "stands behind a phrase such as `answer is`", "Falls as the asked form is learnt."),
        ("last_number", "is the last number", "0 unless asked for."),
        ("none", "was not found", "Near 0."))),
    Metric("reward/{reward}/{more}", "its own", "Reported by a reward of your own (the metrics of its GroupScore, or "
           "what it logs).",
           "What its author says."),
    # The update
    Metric("loss/value", "the loss's own", "Loss of the step's update; of a warm-up the cross-entropy in nats per "
           "token.",
           "Near 0 and noisy in RL, where it does not fall; a warm-up's falls.",
           "A warm-up's rises or jumps: a lower optim.lr."),
    Metric("loss/tokens", TOKENS, "Completion tokens in the loss.", "Falls as groups are refused."),
    Metric("loss/token_accuracy", SHARE, "Tokens that a warm-up's model would pick itself.", "Rises."),
    Metric("loss/ratio", "factor", "Mean importance ratio of the tokens, policy over the one that sampled.", "0.9 to "
           "1.1.",
           "Far from 1: fewer updates per batch, lower optim.lr, less staleness."),
    Metric("loss/clip_low_share", SHARE, "Tokens whose ratio was clipped from below.", "Below 0.05.",
           "High: the policy moves too far in one batch."),
    Metric("loss/clip_high_share", SHARE, "Tokens whose ratio was clipped from above.", "Below 0.05.",
           "High: the policy moves too far in one batch."),
    Metric("loss/kl", NATS + " per token", "KL penalty's distance to the reference (k3); 0 without a penalty.",
           "Grows slowly, below 1.", "Grows quickly: a larger loss.kl_weight, lower optim.lr."),
    Metric("loss/corrected_share", SHARE, "Tokens on which the correction of sampler against trainer acts.", "Near 0.",
           "High: see mismatch/mean."),
    Metric("loss/top_entropy_share", SHARE, "Tokens that get a policy gradient by their entropy.",
           "1, or loss.top_entropy_share as set."),
    Metric("loss/covariance_share", SHARE, "Tokens on which loss.covariance acts.", "As set."),
    Metric("policy/token_entropy", NATS, "Entropy of the distribution of a token, the mean over tokens.", "Falls "
           "slowly.",
           "Falls to 0 early: exploration is over; clip higher, loss.covariance, lower optim.lr. Rises: text falls "
           "apart."),
    Metric("policy/staleness", "updates", "Updates between the version that sampled and the one that trains.",
           "0; up to generator.max_staleness with sampling ahead."),
    Metric("policy/version", "updates", "Optimiser updates so far.", "Grows."),
    Metric("optim/lr", "per update", "Learning rate.", "As scheduled."),
    Metric("optim/grad_norm", "norm", "Norm of the gradient before clipping, the mean over the updates.",
           "Steady within a factor of ten.", "Jumps: lower optim.lr. 0: no group trains."),
    Metric("optim/updates", "updates", "Optimiser updates of the step.", "1, or as configured; 0 where no group "
           "trains."),
    *(Metric(f"{kind}/{name}", NATS, f"{statistic} difference of a token's log-probability between trainer and "
           f"sampler, "
             f"{which}.", normal, advice) for kind, which, normal, advice in (
                 ("mismatch", "where the present version sampled", "Below 1e-3 in float32, below 0.1 in bfloat16.",
                  "Larger: sampler and trainer disagree; docs/precision.md."),
                 ("staleness", "where an older version sampled", "Small: how far the policy moved since.",
                  "Large: smaller generator.max_staleness or optim.lr."))
      for name, statistic in (("mean", "Mean"), ("p95", "95th percentile of the"), ("p99", "99th percentile of the"),
                              ("max", "Largest"))),
    *(Metric(f"{kind}/effective_sample_share", SHARE, "(sum w)^2 / (n sum w^2) of the tokens' importance weights w.",
             "Above 0.9.", "Low: a few tokens carry the gradient.") for kind in ("mismatch", "staleness")),
    Metric("distillation/reverse_kl", NATS + " per token", "ln policy - ln teacher, the mean over tokens.", "Falls "
           "to 0."),
    Metric("distillation/capped_share", SHARE, "Tokens on which the cap of the teacher's advantage acts.", "Below "
           "0.1."),
    # The proof that the sampler has the policy
    Metric("proof/agreement", NATS, "Mean distance of sampler and trainer at the proof's tokens.", "As mismatch/mean."),
    Metric("proof/from_base", NATS, "Mean distance of sampler and base.", "Grows as the policy moves."),
    Metric("proof/moved", NATS, "Mean distance of trainer and base: how far the policy has moved.", "Grows."),
    Metric("proof/share", "factor", "Of the policy's move, what the sampler shows.", "Near 1.",
           "Near 0: the sampler has the base; the run stops by itself where that is sure."),
    Metric("proof/survives", SHARE, "Of the adapter's change, what a merge in the model's precision keeps.", "Near 1.",
           "Low: generator.sync=shared or adapter; docs/precision.md."),
    Metric("proof/inconclusive", "0 or 1", "1: the policy has moved too little to tell it from its base.",
           "1 at first in bfloat16, then 0."),
    Metric("proof/completions", "completions", "Completions that the proof looked at.", "generator.proof_completions."),
    Metric("proof_s", SECONDS, "Time of the proof.", "Small beside step_s."),
    # Speed
    Metric("step_s", SECONDS, "Time of the whole step.", "Steady; falls where groups are refused."),
    Metric("generate_s", SECONDS, "Sampling.", "The largest part without vLLM.", "A faster generator; shorter "
           "completions."),
    Metric("reward_s", SECONDS, "Scoring after sampling had ended.", "Small.", "Slow rewards: any_thread, a faster "
           "judge."),
    Metric("reward_overlapped_s", SECONDS, "Scoring while other groups were still decoding.", "Costs nothing."),
    Metric("train_s", SECONDS, "The update.", "Falls as groups are refused."),
    Metric("sync_s", SECONDS, "Handing the new version to the sampler.", "Small beside generate_s."),
    Metric("teacher_s", SECONDS, "Asking the teacher.", "Small beside train_s."),
    Metric("ahead_wait_s", SECONDS, "Waiting for what was sampled ahead.", "Near 0.",
           "Sampling is slower than training: more samplers."),
    Metric("tokens/sampled", TOKENS, "Sampled in the step.", "Questions x group size x length."),
    Metric("tokens_per_s", "tokens per second", "Sampled tokens over generate_s.", "Steady.",
           "Falls: longer completions, or a sampler that shares its device."),
    Metric("trained_tokens_per_s", "tokens per second", "Tokens that a warm-up reads, prompts included.", "Steady."),
    Metric("sampler/replicas", "servers", "Servers in use.", "All of them.", "Fewer: see the lost one's log."),
    Metric("sampler/retries", "calls", "Repeated calls of servers in the step.", "0."),
    Metric("sampler/lost", "servers", "Servers lost in the step.", "0."),
    Metric("sampler/taken_back", "servers", "Servers that came back.", "0, or as many as were lost."),
    Metric("sampler/waited_s", SECONDS, "Waiting for servers that do not answer.", "0."),
    Metric("num_not_finite", "metrics", "Numbers of the line that were not finite, and are gaps in their curves.", "0.",
           "Often a mean over nothing: no group was judged. In loss or gradient: lower optim.lr."),
)


@lru_cache(maxsize=10_000)
def lookup(name: str) -> Metric | None:
    """The entry of a metric's name in metrics.jsonl; exact names before patterns, in the order of METRICS."""
    exact = next((metric for metric in METRICS if metric.name == name), None)
    return exact or next((metric for metric in METRICS if metric.pattern.fullmatch(name)), None)
