"""Networks that answer differently to the same input, judged by what they say on average."""

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

#: How far logits may move, relative to their spread, before the same input counts as answered differently.
TOLERANCE = 1e-3

#: Forward passes whose class probabilities are averaged before a random network's answer counts.
DRAWS = 20

#: Standard errors by which a wrong class must lead before an attack leaves an example alone. An attack looks at
#: hundreds of points, and the judge draws anew: a lead of two would often have been luck.
SURE = 4.0


@contextlib.contextmanager
def seeded_by_input(*key: object, x: Tensor) -> Iterator[None]:
    """Seed torch's global generators for the block from `key` and the content of x, and put them back afterwards.

    The same network asked the same question for the same purpose draws the same; another input, seed or purpose
    draws anew. So a measurement can be repeated and resumed though the network is random.
    """
    digest = hashlib.sha256("|".join(map(str, (*key, tuple(x.shape)))).encode())
    digest.update(x.detach().contiguous().cpu().numpy().tobytes())
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        torch.manual_seed(int.from_bytes(digest.digest()[:8], "little") >> 1)
        yield


@torch.no_grad()
def is_random(model: nn.Module, x: Tensor) -> bool:
    """Tell whether the model's logits for x [n, C, H, W] change from one call to the next, beyond rounding."""
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        logits, again = model(x), model(x)
    if not isinstance(logits, Tensor) or not isinstance(again, Tensor) or logits.shape != again.shape:
        return False  # the gate will say what is wrong with it
    return bool((again - logits).abs().max() > TOLERANCE * (logits.std(correction=0) + 1e-6))


class MeanPrediction(nn.Module):
    """A random network as the classifier that it is on average.

    x [n, C, H, W] → log of the mean softmax over `draws` forward passes, [n, K]. So no single lucky draw counts, for
    the network or against it: it is fooled where the mean probability of a wrong class is the largest.

    Draws come from torch's global generator, seeded by `seeded_by_input`; they belong to a batch, so a random network's
    outcome may change with the batch size, within the noise of `draws` passes.

    Args:
        model: the network, in eval mode.
        draws: forward passes per answer, at least 1.
        seed: of the draws.
        purpose: separates the draws of the attacker from those of the judge.
    """

    def __init__(self, model: nn.Module, draws: int, seed: int, purpose: str) -> None:
        super().__init__()
        self.training = False  # this module's own mode; the network's is for the gate to judge
        self.model = model
        self.draws, self.seed, self.purpose = draws, seed, purpose

    def forward(self, x: Tensor) -> Tensor:
        answers = self._answers(x)
        # What is wrong with anything but logits, the gate will say.
        return mean_prediction(answers) if len(answers) == self.draws else answers[0]

    def lead(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return by how much a wrong class leads, and whether beyond the noise of the draws.

        x is [n, C, H, W], y int64 [n]; the network must answer with logits.

        Returns:
            Margin of the mean answer, float32 [n], positive where fooled; and bool [n], whether the mean probability
            of the likeliest wrong class is above that of y by more than `SURE` standard errors.
        """
        answers = self._answers(x)
        mean, own = mean_prediction(answers), y[:, None]
        wrong = mean.scatter(1, own, -torch.inf).argmax(1, keepdim=True)
        likely = torch.stack([answer.float().softmax(1) for answer in answers])
        leads = likely.gather(2, wrong.expand(self.draws, -1, 1)) - likely.gather(2, own.expand(self.draws, -1, 1))
        error = leads.std(0, correction=0) / self.draws**0.5
        sure = (leads.mean(0) > SURE * error).squeeze(1)
        return (mean.gather(1, wrong) - mean.gather(1, own)).squeeze(1), sure

    def _answers(self, x: Tensor) -> list[Tensor]:
        """Return the logits of every draw [n, K], or a single answer that is none."""
        # The first word is part of the seed: another one would draw anew for every stored result.
        with seeded_by_input("votes", self.seed, self.purpose, x=x):
            logits: Tensor = self.model(x)
            if not isinstance(logits, Tensor) or logits.ndim != 2:
                return [logits]
            return [logits, *(self.model(x) for _ in range(self.draws - 1))]


def mean_prediction(answers: list[Tensor]) -> Tensor:
    """Return the log of the mean softmax of several passes' logits: [n, K] each → float32 [n, K]."""
    log_mean: Tensor = torch.stack([a.float().log_softmax(1) for a in answers]).logsumexp(0)
    # The smallest number that is not zero: a class that no pass gives a chance is no reason to complain of infinity.
    return (log_mean - torch.log(torch.tensor(float(len(answers))))).clamp_min(-1e4)
