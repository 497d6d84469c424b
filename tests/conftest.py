"Every test draws its own numbers, whatever ran before it."
import pytest, torch

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)
