"""What verl loads at its entry point `verl.plugins`, in every process: registers the engine and the trainer.

The engine is registered for the vendor of the device at hand. verl looks there before it takes its own engine, which
stays registered, and which ours is equal to as long as nobody asks for signals.
"""

from verl.utils.device import get_device_name, get_vendor
from verl.workers.engine import EngineRegistry

from tokencredit.trainers.verl.engine import CreditEngine
from tokencredit.trainers.verl.trainer import CreditTrainer

__all__ = ["CreditEngine", "CreditTrainer"]

EngineRegistry.register(
    model_type="language_model", backend=["fsdp", "fsdp2"], device=get_device_name(), vendor=get_vendor()
)(CreditEngine)
