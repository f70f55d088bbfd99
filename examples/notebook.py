"""From pictures to neighbours, cell by cell, as in a notebook: what a value is, its last line prints."""

# %% Learn without labels. In a notebook of yours, "digits" is the path of a folder of pictures.
import lookalike

run = "runs/notebook"
print(lookalike.pretrain("digits", run, recipe="digits", epochs=2, settings={"checkups": 0}))

# %% What do the features know? The untrained network is the baseline.
for untrained in (True, False):
    print(lookalike.evaluate(run, "digits", "knn", k=20, untrained=untrained))
print(lookalike.compare([run], "digits", "knn", trials=3))

# %% One row a picture, as numpy arrays.
table = lookalike.embed(run, "digits")
print(table, table.vectors.shape, table.label[:10])

# %% What looks like the first picture?
for hit in lookalike.search(run, [table.path[0]], top=5)[0]:
    print(f"{hit.cosine:.3f}  {hit.path}  a {hit.label}")
