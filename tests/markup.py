"""Views and tables, read again from their HTML."""

from html.parser import HTMLParser


def parsed(view):
    """A view's HTML, read again: (tags, texts), each text as (style, title, text)."""
    tags, texts = [], []

    def start(tag, attributes):
        tags.append((tag, dict(attributes)))

    parser = HTMLParser(convert_charrefs=True)
    parser.handle_starttag = start
    parser.handle_endtag = lambda tag: tags.append((f"/{tag}", {}))
    parser.handle_comment = parser.handle_decl = parser.handle_pi = lambda text: tags.append((text, {}))
    parser.handle_data = lambda text: texts.append((tags[-1][1].get("style"), tags[-1][1].get("title"), text))
    parser.feed(view._repr_html_())
    parser.close()
    return tags, texts


def cells_of(table):
    """A table's cells, read again: rows of (tag, attributes, text)."""
    rows, inside = [], []

    def start(tag, attributes):
        inside.append(tag)
        if tag == "tr":
            rows.append([])
        if tag in ("td", "th"):
            rows[-1].append((tag, dict(attributes), ""))

    def end(tag):
        assert inside.pop() == tag

    def data(text):
        if inside[-1] in ("td", "th"):
            rows[-1][-1] = (*rows[-1][-1][:2], text)

    parser = HTMLParser(convert_charrefs=True)
    parser.handle_starttag, parser.handle_endtag, parser.handle_data = start, end, data
    parser.feed(table._repr_html_())
    parser.close()
    assert inside == []
    return rows
