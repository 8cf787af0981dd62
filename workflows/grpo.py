"""Train the policy on rewards: reinforcement learning after sft.

learning.rl.objective is one of grpo, dr_grpo, dapo, gspo, reinforce, ppo, dpo and s_dpo; rewards.* weighs the terms.

genrec grpo demo cpu learning.rl.lr=1e-4 rewards.rank_log=-0.2
genrec grpo demo cpu rewards.custom.mine=0.5 --rewards mine.py
"""

from workflows.cli import main

if __name__ == "__main__":
    main("grpo")
