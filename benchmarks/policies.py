"""The sizes of policy that a step is measured with: the quickstart's, and about 3 and 18 M parameters."""

from tokencredit.testbed.policy import PolicySize

SHAPES = {"0.3M": PolicySize(), "3M": PolicySize(256, 4, 4, 2, 768), "18M": PolicySize(512, 6, 8, 4, 1408)}
