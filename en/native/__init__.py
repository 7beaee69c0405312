"""C++ that is compiled when first used, once for each kind of processor. Imports torch and nothing else of en."""
