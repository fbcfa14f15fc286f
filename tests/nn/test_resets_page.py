"""The code of docs/resets.md runs, and its PPO learns what only memory can solve."""

import re
from pathlib import Path
from typing import Any

import torch

PAGE = Path(__file__).parents[2] / "docs" / "resets.md"
ENVIRONMENTS, ROLLOUT, ACTIONS = 32, 24, 3


class Recall:
    """Environments that show a cue at the first step alone, and ask for it at the last."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.cue = torch.zeros(ENVIRONMENTS, dtype=torch.long)
        self.left = torch.zeros(ENVIRONMENTS, dtype=torch.long)

    def observe(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Observations (B, ACTIONS + 1), and which of them are the first of an episode."""
        begins = self.left == 0
        draw = {"generator": self.generator}
        self.cue[begins] = torch.randint(ACTIONS, (ENVIRONMENTS,), **draw)[begins]
        self.left[begins] = torch.randint(3, 6, (ENVIRONMENTS,), **draw)[begins]
        cue = torch.nn.functional.one_hot(self.cue, ACTIONS) * begins.unsqueeze(-1)
        return torch.cat([cue, (self.left == 1).unsqueeze(-1)], -1).float(), begins

    def act(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rewards and which episodes are over."""
        self.left -= 1
        over = self.left == 0
        return ((actions == self.cue) & over).float(), over


def test_the_page_runs_and_its_ppo_learns_to_remember() -> None:
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for block in blocks:
        exec(block, names)
    assert names["output"].shape == (128, 64, 16)
    policy, generator = names["Policy"](ACTIONS + 1, ACTIONS), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(policy.parameters(), 0.01)
    world, state, shares = Recall(generator), None, []
    for _ in range(20):
        before, steps = state, []
        for _ in range(ROLLOUT):
            observed, begins = world.observe()
            with torch.no_grad():
                logits, _, state = policy(observed[None], state, begins[None])
            actions = torch.multinomial(logits[0].softmax(-1), 1, generator=generator).squeeze(-1)
            chosen = logits[0].log_softmax(-1).gather(-1, actions[:, None]).squeeze(-1)
            steps.append((observed, begins, actions, chosen, *world.act(actions)))
        observed, begins, actions, chosen, rewards, over = map(
            torch.stack, zip(*steps, strict=True)
        )
        shares.append(float(rewards.sum() / over.sum()))
        # A reward comes with the last step alone: it is the return of every step of its episode.
        returns, following = torch.zeros_like(rewards), torch.zeros(ENVIRONMENTS)
        for t in reversed(range(ROLLOUT)):
            following = torch.where(over[t], rewards[t], following)
            returns[t] = following
        for _ in range(4):
            given = (observed, before, begins, actions, chosen, returns)
            loss = names["ppo_loss"](policy, *given)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert sum(shares[:3]) / 3 < 0.5  # a guess is right once in three
    assert sum(shares[-5:]) / 5 > 0.9
