# Your own documents: PDFs, .txt, .md, .jsonl or .parquet, with a vocabulary trained on them:
# 13.8M parameters.
#   python prepare.py --input=papers/ --name=papers
#   python train.py config/papers.py
# prepare.py prints this command with a shape, dropout and steps that fit the amount of text; the
# values below suit about 10 MB. A short text is read many times over, and the validation loss says
# when the model begins to learn it by heart: best.pt is from before that, and sample.py takes it.
# 16 sequences at once take 1.8 GB.
out_dir = 'out/papers'
dataset = 'papers'
n_layer, n_head, n_embd = 6, 6, 384
block_size = 256
dropout = 0.0                       # more if a short text is read often: prepare.py prints it
head_gain = 4.0
tie_weights = False
batch_size = 16
max_iters = 2000
learning_rate = 2e-3
decay_power = 1.0
beta2 = 0.99                        # average over more steps, as most tokens are rare
weight_decay = 1.0                  # high, because the text is read several times
eval_interval = 250
