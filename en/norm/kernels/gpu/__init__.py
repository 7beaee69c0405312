"""The normalizers on a GPU, in Triton: the four passes, and whole layers in a few launches.

The passes are those of ../passes.py. A whole layer is what ../autograd.py makes of them and of the coefficients of
single.py, switchable.py and exemplar.py; it exists because the small part, on (N, K, C), is some hundred launches as
torch's operations. Triton comes with torch where there are GPUs, and is imported when a tensor on one is first
normalized.
"""
