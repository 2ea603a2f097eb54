"""Text for pretraining: several sources, tokenised once and packed to files that training reads in place."""
