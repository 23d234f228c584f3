"""Write the dashboards: ``python -m deploy.grafana``."""

from deploy.grafana.boards import FOLDER, documents

if __name__ == "__main__":
    for name, text in documents().items():
        (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")
