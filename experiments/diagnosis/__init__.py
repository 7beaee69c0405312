"""Why a network with some normalizer trains as it does: its first steps, watched."""
