"""Text for pretraining: several sources, tokenised once and packed into files that training reads in place."""
