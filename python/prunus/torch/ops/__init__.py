"""Operations on component tensors, as torch knows them: ``torch.ops.prunus``."""
