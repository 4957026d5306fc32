# Your own documents (PDF, .txt, .md, .jsonl, .csv, .parquet) with a vocabulary trained on them:
# 13.8M parameters.
#   python prepare.py --input=papers/ --name=papers
#   python train.py config/papers.py
# prepare.py prints this command with a shape, dropout and steps that suit the amount of text; the
# values below suit about 10 MB. A short text is read many times, so the model may overfit: the
# validation loss starts to rise. sample.py uses best.pt, which was saved before that.
# A micro-batch of 16 sequences takes 1.8 GB.
out_dir = 'out/papers'
dataset = 'papers'
n_layer, n_head, n_embd = 6, 6, 384
tie_weights = False
optimizer = 'muon'
learning_rate = 2e-3
min_lr = 0.0
schedule = 'linear'
output_lr_scale = 4.0
warmup_iters = 50
beta2 = 0.99                        # average over more steps, because most tokens are rare
weight_decay = 1.0                  # high, because the text is read several times
